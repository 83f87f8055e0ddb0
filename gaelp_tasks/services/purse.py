"""Who pays for an accepted invocation: its agent and its user, up to a bound that its message carries.

The policy of its agent is asked, the most that it may cost is held, and what that pays for is written into
its message, so that its run cuts itself. Its end settles that, in the transaction that notes the end.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.db.agents import lock as lock_agents
from gaelp_tasks.db.budgets import Holding, lock, lock_held
from gaelp_tasks.db.database import Session
from gaelp_tasks.db.ledger import Unpaid
from gaelp_tasks.errors import BudgetExceeded, DatabaseUnavailable, GaelpError
from gaelp_tasks.models.acceptance import Acceptance, End
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.invocation import Invocation, InvocationResult
from gaelp_tasks.models.money import Charge, Owner, OwnerKind
from gaelp_tasks.services import audit, budgets
from gaelp_tasks.services.agents import invocable
from gaelp_tasks.services.charging import Bound, bill, bound_of, most_micro, predicted, tokens_within
from gaelp_tasks.services.deployments import spent
from gaelp_tasks.services.place import At
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.accepted import check

__all__ = ["Purse", "key_of"]

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class Used(NamedTuple):
    """An agent whose budget has refused something, or has cut a run."""

    tenant: str
    agent_id: int
    why: str


class Purse:
    """The purse of one process; `run` stops agents that have reached their limit."""

    def __init__(self, app: GaelpApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._used: asyncio.Queue[Used] = asyncio.Queue()

    async def payers(self, session: Session, rows: Sequence[Acceptance]) -> set[str]:
        """The ids of those for which something has to be held, or decided; what that needs is locked."""
        agents = {row.agent_id for row in rows if row.agent_id is not None}
        await lock_agents(session, agents)
        owners = {(row.tenant, owner) for row in rows for owner in _owners(row)}
        rich = await lock(session, owners)
        return {
            row.id
            for row in rows
            if row.agent_id is not None
            or row.budget_micro is not None
            or any((row.tenant, owner) in rich for owner in _owners(row))
        }

    async def hold(self, session: Session, row: Acceptance) -> Acceptance:
        """Hold the most that it may cost; it with what its agent and its budgets allow.

        Raises BudgetExceeded, PolicyViolated, Conflict, NotFound, InvalidInvocation.
        """
        given = json.loads(row.asked)
        owners: tuple[Owner, ...] = (Owner(OwnerKind.USER, row.owner),)
        cap_micro = row.budget_micro
        spared: tuple[Owner, ...] = ()
        options = given.get("options") or {}
        if row.agent_id is not None:
            caller = Caller(name=row.owner, tenant=row.tenant)
            agent = await invocable(
                session,
                row.agent_id,
                caller,
                settings=self._settings,
                model=row.model or None,
                subject=f"invocation {row.id}",
            )
            given, owners, options = agent.shaped(given), agent.owners, {**options, **agent.options}
            spared = () if agent.spends else (_of_agent(row.agent_id),)
            caps = [cap for cap in (cap_micro, agent.limits.cost_per_run_micro) if cap is not None]
            cap_micro = min(caps, default=None)
        given["most_tokens"] = await self._hold(
            session, row, given, owners, cap_micro, spared, named=predicted(options)
        )
        checked = check(self._app, given)
        agent_name = str(given.get("agent", row.agent))
        return row._replace(asked=checked.asked, model=checked.model, tier=checked.tier, agent=agent_name)

    async def _hold(
        self,
        session: Session,
        row: Acceptance,
        given: dict[str, object],
        owners: Sequence[Owner],
        cap_micro: int | None,
        spared: Sequence[Owner],
        *,
        named: int | None,
    ) -> int:
        """How many tokens it may tell; `named` is its num_predict, but for what a limit alone says."""
        tariff, settings = self._settings.tariff, self._settings
        asked = Invocation.parse(given, max_prompt_bytes=settings.most_prompt_bytes)
        wanted = bound_of(tariff, asked, asked.most_tokens or named or settings.paid_tokens)
        least, most = bound_of(tariff, asked, 1), wanted.amount_micro
        if cap_micro is not None:
            if cap_micro < least.amount_micro:
                raise BudgetExceeded("What it may cost at most does not even pay for reading its prompt.")
            most = min(most, cap_micro)
        try:
            held = await budgets.hold_up_to(
                session, key_of(row), owners, least.amount_micro, most, tenant=row.tenant, spared=spared
            )
        except BudgetExceeded as error:
            if error.owner.startswith("agent ") and await _is_used_up(session, row, least.amount_micro):
                self._used.put_nowait(Used(row.tenant, row.agent_id or 0, str(error)))
            raise
        tokens = tokens_within(tariff, asked, held, wanted.completion_tokens)
        at = Holding(session, row.tenant, row.created_at)
        await at.note(key_of(row), most_prompt_tokens=wanted.prompt_tokens, most_tokens=tokens)
        return tokens

    async def refused(self, session: Session) -> None:
        """Have the audit keep what was refused in this transaction; after each refusal."""
        await audit.keep_refusals(session)

    async def settle(self, session: Session, ended: Sequence[tuple[Acceptance, End]]) -> None:
        """These are over; called once for each, also for what nothing was held for."""
        keys = {(row.tenant, key_of(row)) for row, _ in ended}
        held = await lock_held(session, keys)
        unpaid: list[Unpaid] = []
        for row, end in ended:
            hold = held.get((row.tenant, key_of(row)))
            result = _result_in(end)
            if hold is not None:
                await self._settle(session, row, hold, end, result)
            elif row.agent_id is None and result is not None:  # what agents do is always held
                bound = Bound(int(self._settings.max_prompt_bytes), int(self._settings.max_output_bytes), 0)
                lines = _bill(self._settings, row, bound, end, result)
                unpaid.append(Unpaid(row.tenant, key_of(row), row.owner, lines))
        await budgets.record(session, unpaid)

    async def _settle(
        self, session: Session, row: Acceptance, hold: Any, end: End, result: InvocationResult | None
    ) -> None:
        key, settings = key_of(row), self._settings
        if result is None:
            await budgets.void(session, key, tenant=row.tenant)
            return
        bound = Bound(
            hold.most_prompt_tokens or int(settings.max_prompt_bytes),
            hold.most_tokens or int(settings.max_output_bytes),
            hold.bound_micro,
        )
        lines = _bill(settings, row, bound, end, result)
        amount_micro = sum(line.amount_micro for line in lines)
        await budgets.settle(session, key, amount_micro, lines, tenant=row.tenant)
        again_micro = most_micro(settings.tariff, row.model, bound.prompt_tokens, 1)
        if end.stop_reason == "budget" and await _is_used_up(session, row, again_micro):
            why = "An answer was cut: its budget was spent."
            self._used.put_nowait(Used(row.tenant, row.agent_id or 0, why))

    async def run(self, at: At) -> None:
        """Stop those that have reached their limit, until cancelled."""
        while True:
            used = await self._used.get()
            try:
                await spent(at, used.tenant, used.agent_id, used.why)
            except DatabaseUnavailable:
                self._used.put_nowait(used)
                await asyncio.sleep(RETRY_S)
            except GaelpError as error:
                logger.warning("Agent %s goes on over its limit: %s", used.agent_id, error)


def _bill(
    settings: Settings, row: Acceptance, bound: Bound, end: End, result: InvocationResult
) -> tuple[Charge, ...]:
    asked = row.model or None
    return bill(settings.tariff, bound, result, asked_model=asked, wasted_tokens=end.wasted_tokens)


async def _is_used_up(session: Session, row: Acceptance, least_micro: int) -> bool:
    """Whether the budget of its agent will not pay for this any more, whatever becomes of what is held.

    After an answer that this budget has cut, the same prompt is more than is left; where the user's budget
    has cut it, or what the call or a limit allowed, it is not.
    """
    if row.agent_id is None:
        return False
    own = await Holding(session, row.tenant, datetime.now(UTC)).budgets([_of_agent(row.agent_id)])
    return any(budget.available_micro + budget.held_micro < least_micro for budget in own)


def _of_agent(agent_id: int) -> Owner:
    return Owner(OwnerKind.AGENT, str(agent_id))


def _owners(row: Acceptance) -> tuple[Owner, ...]:
    """Who may have a budget that pays for it."""
    user = Owner(OwnerKind.USER, row.owner)
    return (user,) if row.agent_id is None else (user, _of_agent(row.agent_id))


def key_of(row: Acceptance) -> str:
    """Under which it is held; an id that an idempotency key makes may come again when it was forgotten."""
    return f"invocation:{row.id}@{int(row.created_at.timestamp())}"


def _result_in(end: End) -> InvocationResult | None:
    """What was told; None where nothing was."""
    if end.result is None:
        return None
    try:
        return InvocationResult.model_validate(end.result)
    except ValueError:
        logger.warning("What invocation %s has cost cannot be read: nothing is paid.", end.id)
        return None
