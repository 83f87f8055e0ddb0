"""Batches that a budget pays for: held once before the first line runs, settled once when all is over.

Each line has a bound, as an invocation has, and its message carries it, so that its run cuts itself. All of
them together are held in the transaction that lets the batch begin. When it is over, `watch` counts what its
lines have really used, a piece at a time, and settles that. It runs in the API, whose tariff counts: who
works on a batch knows nothing of money, and may die whenever it likes.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from gaelp_tasks.db import batch_bills as rows
from gaelp_tasks.db.batch_bills import Bill, LineBound, Ran
from gaelp_tasks.db.budgets import Budgets, lock
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.errors import BudgetExceeded, Conflict, DatabaseUnavailable, NotFound
from gaelp_tasks.failpoints import reach
from gaelp_tasks.models.batch import Batch
from gaelp_tasks.models.batch_file import BadLine, Line
from gaelp_tasks.models.invocation import Embedding, EmbeddingResult, Invocation, InvocationResult
from gaelp_tasks.models.money import MOST_MICRO, Charge, CostKind, Owner, OwnerKind, units
from gaelp_tasks.services import budgets
from gaelp_tasks.services.charging import Bound, bill, bound_of, embedding_bound
from gaelp_tasks.services.place import At
from gaelp_tasks.settings import Settings

__all__ = ["Payer", "bounded", "settle", "watch"]

logger = logging.getLogger(__name__)

EVERY_S = 2.0
LOWER = "a smaller max_tokens or num_predict in its lines, or fewer lines, would lower that."


class Payer:
    """Who pays for a batch while its file is read: a user with a budget, or nobody."""

    def __init__(self, db: Database, settings: Settings, user: str) -> None:
        self._db = db
        self._settings = settings
        self._owner = Owner(OwnerKind.USER, user)
        self._pays = False
        self._bound_micro = 0

    async def look(self, tenant: str) -> None:
        """Look whether the user has a budget. Raises DatabaseUnavailable."""
        self._pays = bool(await Budgets(self._db, tenant).find(self._owner, now=datetime.now(UTC)))

    def shaped(self, piece: list[Line | BadLine]) -> tuple[list[Line | BadLine], list[LineBound]]:
        """These lines as they are to be kept, and what each may cost; as they are where nobody pays."""
        if not self._pays:
            return piece, []
        lines, bounds = list[Line | BadLine](), list[LineBound]()
        for line in piece:
            if isinstance(line, BadLine):
                lines.append(line)
                continue
            shaped, bound = bounded(self._settings, line)
            lines.append(shaped)
            bounds.append(bound)
        return lines, bounds

    async def keep(self, batch_id: str, bounds: Sequence[LineBound]) -> None:
        """Note what these lines may cost, which are kept by now. Raises DatabaseUnavailable."""
        if bounds:
            reach("batch:before its bounds are kept")
            self._bound_micro += await rows.keep_bounds(self._db, batch_id, bounds)

    async def hold(self, session: Session, batch: Batch) -> None:
        """Hold what all may cost, where somebody pays: in the transaction that lets the batch begin.

        Raises BudgetExceeded; Conflict where the user was given a budget while the file was read.
        """
        has_budget = bool(await lock(session, {(batch.tenant, self._owner)}))
        if not self._pays:
            if has_budget:
                name = self._owner.id
                raise Conflict(f"{name} was given a budget while the file was read: submit it again.")
            return
        if self._bound_micro > MOST_MICRO:
            raise BudgetExceeded(f"This may cost up to {units(self._bound_micro)}, as no budget has: {LOWER}")
        try:
            await budgets.hold(
                session, rows.key_of(batch), [self._owner], self._bound_micro, tenant=batch.tenant
            )
        except BudgetExceeded as error:
            raise BudgetExceeded(f"{str(error).rstrip('.')}: {LOWER}") from None
        await rows.open_bill(session, batch)
        reach("batch:before it is held")


def bounded(settings: Settings, line: Line) -> tuple[Line, LineBound]:
    """A line whose run cuts itself, and what it may cost at most."""
    given = json.loads(line.arguments)
    most_bytes, tariff = settings.most_prompt_bytes, settings.tariff
    asked: Embedding | Invocation
    if line.embeds:
        asked = Embedding.parse(given, max_prompt_bytes=most_bytes)
        bound = embedding_bound(tariff, asked)
    else:
        asked = Invocation.parse(given, max_prompt_bytes=most_bytes)
        bound = bound_of(tariff, asked, asked.most_tokens or settings.paid_tokens)
        line = line._replace(arguments=json.dumps(given | {"most_tokens": bound.completion_tokens}))
    return line, LineBound(line.number, asked.model or "", *bound)


async def settle(db: Database, settings: Settings, batch_id: str | None = None) -> int:
    """Settle the batches that are over, or this one; how many. Raises DatabaseUnavailable.

    Whoever dies meanwhile, or is passed by another, leaves the rest to the next: what is counted stays so.
    """
    count = 0
    for one in await rows.due(db, batch_id):
        try:
            count += await _settle(db, settings, one)
        except DatabaseUnavailable:
            raise
        except Exception:  # the others are settled all the same
            logger.exception("What batch %s has cost is not settled yet.", one.batch_id)
    return count


async def _settle(db: Database, settings: Settings, one: Bill) -> bool:
    while True:
        counted_to, lines = await rows.ran(db, one)
        if not counted_to:
            break
        charges = await asyncio.to_thread(_counted, settings, one.charges, lines)
        counted = one._replace(counted_to=counted_to, charges=charges)
        async with db.writing() as session:
            if not await rows.locked(session, one):
                return False
            await rows.advance(session, counted)
            reach("bill:before it is counted")
        reach("bill:counted")
        one = counted
    async with db.writing() as session:
        if not await rows.locked(session, one):
            return False
        amount_micro = sum(line.amount_micro for line in one.charges)
        try:
            await budgets.settle(session, one.hold, amount_micro, one.charges, tenant=one.tenant)
        except NotFound as error:
            logger.warning("Nobody pays for batch %s: %s", one.batch_id, error)
        await rows.close(session, one)
        reach("bill:before it is settled")
    reach("bill:settled")
    return True


def _counted(settings: Settings, before: Sequence[Charge], lines: Sequence[Ran]) -> tuple[Charge, ...]:
    """These charges with those of these lines, one of each kind."""
    sums: dict[CostKind, tuple[int, int]] = {}
    for kind, quantity, amount_micro in (*before, *(one for line in lines for one in _bill(settings, line))):
        counted, micro = sums.get(kind, (0, 0))
        sums[kind] = (counted + quantity, micro + amount_micro)
    return tuple(Charge(kind, *both) for kind, both in sums.items())


def _bill(settings: Settings, line: Ran) -> tuple[Charge, ...]:
    kind = EmbeddingResult if line.embeds else InvocationResult
    try:
        result = kind.model_validate_json(line.result)
    except ValueError:
        logger.warning("What line %d of a batch has cost cannot be read: nothing is paid.", line.number)
        return ()
    bound = Bound(line.prompt_tokens, line.completion_tokens, 0)
    lost = line.wasted_tokens
    return bill(settings.tariff, bound, result, asked_model=line.model or None, wasted_tokens=lost)


async def watch(at: At) -> None:
    """Settle what is over, until cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            await settle(at.db, at.settings)
        except DatabaseUnavailable as error:
            logger.warning("What batches have cost is settled later: %s", error)
