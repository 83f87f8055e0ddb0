"""Accepting invocations: kept in SQL before anybody is told so, many in one transaction, published after it.

What comes while one transaction runs waits for the next: they share its commit, and one round trip to Redis.
Each of them fails alone. Where Redis is away the relay publishes later.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import NamedTuple, Protocol
from uuid import UUID

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.db.accepted import Outbox
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    GaelpError,
    IdempotencyConflict,
    InvalidInvocation,
    QueueFull,
)
from gaelp_tasks.failpoints import reach
from gaelp_tasks.models.acceptance import Acceptance, End, Standing, Submission
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.runtime import going_on
from gaelp_tasks.tasks.accepted import check, send
from gaelp_tasks.tasks.idempotency import id_of

__all__ = ["LEASE", "LOOK", "Accepting", "Purse", "refusal", "settle"]

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=5)  #: who has accepted or taken one publishes it within this, or another does
LOOK = timedelta(seconds=10)  #: after its publication the relay looks at it first, unless it hears of its end
MOST_AT_ONCE = 200  #: in one transaction
MOST_HERE = 2000  #: that wait for one in this process
RETRY_S = 1.0
COUNT_S = 1.0  #: between two counts of what is open
IDS_AT_ONCE = 256
LONG_CHARS = 64 * 1024  #: of a prompt that is checked on another thread


_chance: list[bytes] = []
os.register_at_fork(after_in_child=_chance.clear)


def _new_id() -> str:
    """An id as uuid4 gives it; asking the system for each would let other threads in each time."""
    if not _chance:
        many = os.urandom(16 * IDS_AT_ONCE)
        _chance.extend(many[at : at + 16] for at in range(0, len(many), 16))
    return str(UUID(bytes=_chance.pop(), version=4))


class Purse(Protocol):
    """What holds money for an invocation, and settles it: in the transaction of whoever asks."""

    async def payers(self, session: Session, rows: Sequence[Acceptance]) -> set[str]:
        """The ids of those for which something has to be held, or decided."""

    async def hold(self, session: Session, row: Acceptance) -> Acceptance:
        """Hold the most that it may cost; it as it may be published. Raises GaelpError."""

    async def refused(self, session: Session) -> None:
        """One was not held: what led to that may be kept."""

    async def settle(self, session: Session, ended: Sequence[tuple[Acceptance, End]]) -> None:
        """These are over; called once for each, also for what nothing was held for."""


class _Asked(NamedTuple):
    row: Acceptance
    has_key: bool
    told: "asyncio.Future[Acceptance]"


@dataclass(slots=True)
class _Marks:
    """What is in Redis by now, and not yet said so in SQL."""

    life: str
    ids: list[str] = field(default_factory=list)


class Accepting:
    """Accepts for one process; `run` does the work, until it is cancelled."""

    def __init__(
        self,
        app: GaelpApp,
        db: Database,
        *,
        most_waiting: int,
        purse: Purse | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.outbox = Outbox(db)
        self._app = app
        self._most_waiting = most_waiting
        self._purse = purse
        self._now = now
        self._asked: list[_Asked] = []
        self._kept: list[Acceptance] = []
        self._marks: list[_Marks] = []
        self._refused: list[End] = []
        self._open = 0  #: in SQL, as far as is known here
        self._counted_until = 0.0
        self._to_keep = asyncio.Event()
        self._to_send = asyncio.Event()

    # --- for who submits ---

    async def submit(self, submission: Submission, caller: Caller, *, key: str | None = None) -> Acceptance:
        """Accept it: when this returns it is in SQL, and will have an end.

        `key` is an idempotency key beside that of the body: the same one again gives the same invocation.
        Raises InvalidInvocation, IdempotencyConflict, NotAllowed, BudgetExceeded, QueueFull,
        DatabaseUnavailable.
        """
        if len(self._asked) >= MOST_HERE:
            raise QueueFull("As many wait here as may wait: ask again later.", retry_after_s=RETRY_S)
        if _is_long(submission):  # megabytes of JSON would keep all others waiting
            row, has_key = await asyncio.to_thread(self._row, submission, caller, key)
        else:
            row, has_key = self._row(submission, caller, key)
        told: asyncio.Future[Acceptance] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(row, has_key, told))
        self._to_keep.set()
        return await told

    def _row(self, submission: Submission, caller: Caller, key: str | None) -> tuple[Acceptance, bool]:
        given = submission.arguments()
        tenant = caller.tenant_for(given.pop("tenant", None))
        if not tenant.isprintable():
            raise InvalidInvocation("tenant: take printable characters.")
        given |= {"tenant": tenant} if tenant else {}
        if key is not None and given.setdefault("idempotency_key", key) != key:
            raise IdempotencyConflict("idempotency_key: it is another one than in the header.")
        named = given.get("idempotency_key")
        checked = check(self._app, given)
        row = Acceptance(
            id=_new_id() if named is None else id_of(named, tenant or None),
            tenant=tenant,
            owner=caller.name,
            standing=Standing.ACCEPTED,
            agent_id=submission.agent_id,
            budget_micro=submission.budget_micro,
            agent=submission.agent,
            model=checked.model,
            tier=checked.tier,
            priority=submission.priority,
            digest=submission.digest(checked.digest) if checked.digest else "",
            asked=checked.asked,
            created_at=self._now(),
        )
        return row, named is not None

    # --- the work ---

    async def run(self) -> None:
        """Keep and publish what is asked for."""
        async with asyncio.TaskGroup() as works:
            works.create_task(self._keep_all())
            works.create_task(self._send_all())

    async def _keep_all(self) -> None:
        while going_on():
            await self._to_keep.wait()
            self._to_keep.clear()
            while going_on() and (self._asked or self._marks or self._refused):
                await self._keep()

    async def _keep(self) -> None:
        """One transaction."""
        asked, self._asked = self._asked[:MOST_AT_ONCE], self._asked[MOST_AT_ONCE:]
        marks, self._marks = self._marks, []
        refused, self._refused = self._refused, []
        told: list[Acceptance | GaelpError] = []
        new: list[Acceptance] = []
        try:
            async with self.outbox.writing() as session:
                await self._mark(session, marks, refused)
                if asked:
                    told, new = await self._decide(session, asked)
                    reach("accept:before the commit")
        except Exception as error:
            _tell(asked, [error] * len(asked))
            if not isinstance(error, DatabaseUnavailable):
                logger.exception("Nothing of a group was accepted.")
            return  # the relay finds out what was published
        if marks:
            reach("accept:marked")
        if asked:
            reach("accept:committed")
        _tell(asked, told)
        if new:
            self._kept += new
            self._to_send.set()

    async def _mark(self, session: Session, marks: Sequence[_Marks], refused: Sequence[End]) -> None:
        now = self._now()
        for one in marks:
            await self.outbox.published(session, one.ids, one.life, now=now, next_at=now + LOOK)
        await settle(self.outbox, session, refused, now, self._purse)

    async def _decide(
        self, session: Session, asked: Sequence[_Asked]
    ) -> tuple[list[Acceptance | GaelpError], list[Acceptance]]:
        """What each is told, and those that are new."""
        next_at = self._now() + LEASE
        room = await self._room(session)
        known = await self.outbox.known(session, {one.row.id for one in asked if one.has_key})
        rows = [one.row for one in asked]
        paying: set[str] = set() if self._purse is None else await self._purse.payers(session, rows)
        told: list[Acceptance | GaelpError] = []
        new: list[Acceptance] = []
        plain: list[Acceptance] = []
        for one in asked:
            row = one.row
            if row.id in known:
                told.append(_same(known[row.id], row))
            elif len(new) >= room:
                told.append(QueueFull("As many wait as may wait: ask again later.", retry_after_s=RETRY_S))
            elif not one.has_key and row.id not in paying:
                plain.append(row)
                told.append(row)
                new.append(row)
            else:
                answer, is_new = await self._alone(session, row, next_at, pays=row.id in paying)
                told.append(answer)
                if isinstance(answer, Acceptance):
                    known[row.id] = answer
                    if is_new:
                        new.append(answer)
        await self.outbox.add(session, plain, next_at)
        self._open += len(new)
        return told, new

    async def _room(self, session: Session) -> int:
        """How many more may wait: counted once a second, and exactly where it might be too many."""
        if monotonic() >= self._counted_until or self._open + MOST_AT_ONCE >= self._most_waiting:
            self._open = await self.outbox.waiting(session)
            self._counted_until = monotonic() + COUNT_S
        return self._most_waiting - self._open

    async def _alone(
        self, session: Session, row: Acceptance, next_at: datetime, *, pays: bool
    ) -> tuple[Acceptance | GaelpError, bool]:
        """What may fail, or be somebody else's, without harm to the others."""
        try:
            async with session.begin_nested():
                if not await self.outbox.add_unless_there(session, row, next_at):
                    there = await self.outbox.known(session, [row.id])
                    return _same(there[row.id], row), False
                if pays and self._purse is not None:
                    row = await self._purse.hold(session, row)
                    await self.outbox.change(session, row)
        except DatabaseUnavailable:
            raise
        except GaelpError as error:
            if pays and self._purse is not None:
                await self._purse.refused(session)
            return error, False
        return row, True

    async def _send_all(self) -> None:
        while going_on():
            await self._to_send.wait()
            self._to_send.clear()
            while going_on() and self._kept:
                rows, self._kept = self._kept[:MOST_AT_ONCE], self._kept[MOST_AT_ONCE:]
                await self._send(rows)

    async def _send(self, rows: Sequence[Acceptance]) -> None:
        try:
            sent = await asyncio.to_thread(send, self._app, rows)
        except BrokerUnavailable as error:
            logger.warning("%d accepted invocations wait for Redis: %s", len(rows) + len(self._kept), error)
            self._kept.clear()  # the relay has them, and waits for Redis
            return
        except Exception:
            logger.exception("%d accepted invocations are left to the relay.", len(rows))
            return
        reach("accept:published")
        self._refused += [refusal(name, error) for name, error in sent.refused.items()]
        self._marks.append(_Marks(sent.life, [row.id for row in rows if row.id not in sent.refused]))
        self._to_keep.set()


async def settle(
    outbox: Outbox, session: Session, ends: Sequence[End], now: datetime, purse: Purse | None
) -> list[str]:
    """Note in one transaction how these have ended, and pay for them; those of which it is the first end."""
    there = await outbox.lock(session, [end.id for end in ends])
    told: dict[str, End] = {}
    for end in sorted((one for one in ends if one.id in there), key=lambda one: one.id):
        result = "" if end.result is None else json.dumps(end.result, separators=(",", ":"))
        if await outbox.end(session, end, now, result=result):
            told[end.id] = end
    if purse is not None and told:
        await purse.settle(session, [(there[name], end) for name, end in told.items()])
    return list(told)


def _is_long(asked: Submission) -> bool:
    return bool(asked.messages or asked.documents or asked.images) or len(asked.prompt or "") > LONG_CHARS


def refusal(invocation_id: str, error: Exception) -> End:
    """The end of one that Redis' side will never take."""
    return End(invocation_id, Standing.FAILED, error=f"{type(error).__name__}: {error}")


def _same(there: Acceptance, asked: Acceptance) -> Acceptance | GaelpError:
    if there.digest == asked.digest:
        return there
    return IdempotencyConflict(
        f"idempotency_key: it stands for invocation {there.id}, which asks for something else: repeat that "
        "call as it was, or take another key."
    )


def _tell(asked: Sequence[_Asked], told: Sequence[Acceptance | Exception]) -> None:
    for one, answer in zip(asked, told, strict=True):
        with suppress(asyncio.InvalidStateError):  # who asked has gone meanwhile
            if isinstance(answer, Exception):
                one.told.set_exception(answer)
            else:
                one.told.set_result(answer)
