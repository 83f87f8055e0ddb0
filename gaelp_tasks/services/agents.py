"""Agents from their registration to their end: each change is a decision, and a version that stays."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from gaelp_tasks.db.agent_rows import AgentRow
from gaelp_tasks.db.agents import Agents, Which, shown
from gaelp_tasks.db.budgets import Holding
from gaelp_tasks.db.database import Session
from gaelp_tasks.db.decisions import Decisions
from gaelp_tasks.db.deployments import Deployments
from gaelp_tasks.db.idempotency import note_made
from gaelp_tasks.db.money_rows import budget_of
from gaelp_tasks.errors import InvalidInvocation, NotFound
from gaelp_tasks.models.agent import (
    TERMINAL,
    Agent,
    AgentChange,
    AgentSpec,
    AgentState,
    AgentType,
    AgentVersion,
    NewAgent,
    plain,
)
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.deployment import DeploymentState
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.models.image import is_allowed
from gaelp_tasks.models.invocable import Invocable
from gaelp_tasks.models.limits import tightest
from gaelp_tasks.models.money import Owner, OwnerKind
from gaelp_tasks.models.policy import POLICIES, Act, Asked
from gaelp_tasks.services.audit import judge, trail
from gaelp_tasks.services.budgets import set_budget
from gaelp_tasks.services.job_line import dismiss
from gaelp_tasks.services.moves import move_row, no_move, stop_rows
from gaelp_tasks.services.place import At
from gaelp_tasks.services.sealing import sealed
from gaelp_tasks.services.telling import tell
from gaelp_tasks.settings import Settings

__all__ = [
    "AgentService",
    "Trainable",
    "asked_of",
    "found",
    "invocable",
    "may_spend_more",
    "raises_approved_budget",
    "spec_of",
    "trainable",
]

HOUR = timedelta(hours=1)
STOPPABLE = frozenset(DeploymentState) - {DeploymentState.STOPPED}


def asked_of(caller: Caller, row: AgentRow, spec: AgentSpec, settings: Settings) -> Asked:
    """The facts about an agent and who asks."""
    policy = POLICIES[spec.type]
    return Asked(
        type=spec.type,
        caller=caller.name,
        is_operator=caller.role.covers(Role.OPERATOR),
        owner=row.owner,
        state=AgentState(row.state),
        image_allowed=_image_allowed(spec, settings),
        budget_micro=spec.budget_micro,
        has_safety_policy=spec.safety_policy is not None and spec.safety_policy.says_something,
        limits=tightest(policy.limits, spec.limits, spec.safety_policy),
    )


def _image_allowed(spec: AgentSpec, settings: Settings) -> bool:
    return spec.docker_image is None or is_allowed(spec.docker_image, settings.training_images)


async def found(session: Session, caller: Caller, agent_id: int, *, lock: bool = False) -> AgentRow:
    """The agent, if the caller may see it. Raises NotFound."""
    row = await Agents(session, caller.scope).row(agent_id, lock=lock)
    if row is None:
        raise NotFound(f"There is no agent {agent_id}.")
    return row


async def spec_of(session: Session, row: AgentRow, number: int | None = None) -> AgentVersion:
    """A version of an agent, None: the newest. Raises NotFound."""
    version = await Agents(session, row.tenant).version(row.id, number or row.version)
    if version is None:
        raise NotFound(f"Agent {row.id} has no version {number}.")
    return version


class AgentService:
    """Everything that people do with agents; each raises NotFound for one that the caller may not see."""

    def __init__(self, at: At, caller: Caller) -> None:
        self._at = at
        self._caller = caller

    async def register(self, new: NewAgent) -> Agent:
        """Keep a new one. Raises PolicyViolated, and Conflict where secrets cannot be kept."""
        now, caller = datetime.now(UTC), self._caller
        async with trail(self._at.db) as session:
            agents = Agents(session, caller.scope)
            row = await agents.add(new.spec, tenant=caller.tenant, owner=caller.name, now=now)
            asked = asked_of(caller, row, new.spec, self._at.settings)
            await judge(session, caller, Act.REGISTER, asked, agent=row, subject="version 1")
            await agents.keep_secrets(
                row, sealed(self._at.settings, row.tenant, row.id, plain(new.secrets)), now, by=caller.name
            )
            await _give_budget(session, row, new.spec, caller)
            await session.flush()
            note_made(session, f"agents/{row.id}")
            [agent] = await agents.told([row])
        return agent

    async def show(self, agent_id: int) -> Agent:
        """One agent. Raises NotFound."""
        agent = await shown(self._at.db, self._caller.scope, agent_id)
        if agent is None:
            raise NotFound(f"There is no agent {agent_id}.")
        return agent

    async def listed(self, which: Which, *, most: int, skip: int = 0) -> list[Agent]:
        """Those that the caller may see, the oldest first."""
        async with self._at.db.reading() as session:
            return await Agents(session, self._caller.scope).listed(which, most=most, skip=skip)

    async def change(self, agent_id: int, change: AgentChange) -> Agent:
        """Make a new version; a change that changes nothing makes none. Raises NotAllowed, PolicyViolated."""
        async with trail(self._at.db) as session:
            row = await found(session, self._caller, agent_id, lock=True)
            before = (await spec_of(session, row)).spec
            try:
                after = change.applied(before)
            except ValueError as error:
                raise InvalidInvocation(str(error)) from None
            return await self._renew(session, row, before, after, Act.CHANGE)

    async def roll_back(self, agent_id: int, number: int) -> Agent:
        """Make a new version that is an earlier one again. Raises NotAllowed, PolicyViolated."""
        async with trail(self._at.db) as session:
            row = await found(session, self._caller, agent_id, lock=True)
            before = (await spec_of(session, row)).spec
            after = (await spec_of(session, row, number)).spec
            return await self._renew(session, row, before, after, Act.ROLL_BACK, again=number)

    async def _renew(
        self,
        session: Session,
        row: AgentRow,
        before: AgentSpec,
        after: AgentSpec,
        act: Act,
        *,
        again: int | None = None,
    ) -> Agent:
        """The next version, and the budget with it; the agent is locked."""
        caller, agents = self._caller, Agents(session, row.tenant)
        asked = asked_of(caller, row, after, self._at.settings)
        if after.budget_micro != before.budget_micro:
            to_micro = _most_micro(after)
            asked = asked._replace(
                raises_budget=await raises_approved_budget(session, row, before, to_micro),
                passes_by=await _passes_by(session, row, to_micro),
            )
        subject = f"version {row.version + (after != before)}"
        await judge(session, caller, act, asked, agent=row, subject=subject)
        if after != before:
            agents.add_version(row, after, author=caller.name, now=datetime.now(UTC), again=again)
            if after.budget_micro != before.budget_micro:
                await _give_budget(session, row, after, caller, instead=before)
            await session.flush()
        [agent] = await agents.told([row])
        return agent

    async def versions(self, agent_id: int, *, most: int, skip: int = 0) -> list[AgentVersion]:
        """All versions, the newest first."""
        async with self._at.db.reading() as session:
            row = await found(session, self._caller, agent_id)
            return await Agents(session, row.tenant).versions(agent_id, most=most, skip=skip)

    async def move(self, agent_id: int, to: AgentState) -> Agent:
        """Bring it into a state; the one it is in already stays. Raises Conflict, NotAllowed."""
        if to in TERMINAL:
            return await self.terminate(agent_id)
        told: dict[str, str] = {}
        async with trail(self._at.db) as session:
            row = await found(session, self._caller, agent_id, lock=True)
            asked = asked_of(self._caller, row, (await spec_of(session, row)).spec, self._at.settings)
            asked = asked._replace(no_move=no_move(row, to))
            await judge(session, self._caller, Act.MOVE, asked, agent=row, subject=to.value)
            if row.state != to.value:
                told = move_row(row, to, datetime.now(UTC))
            [agent] = await Agents(session, row.tenant).told([row])
        await self._tell(agent_id, told)
        return agent

    async def terminate(self, agent_id: int) -> Agent:
        """End it for good: its deployments and jobs stop, secrets are gone; versions and audit stay."""
        told: dict[str, str] = {}
        async with trail(self._at.db) as session:
            row = await found(session, self._caller, agent_id, lock=True)
            agents = Agents(session, row.tenant)
            asked = asked_of(self._caller, row, (await spec_of(session, row)).spec, self._at.settings)
            await judge(session, self._caller, Act.TERMINATE, asked, agent=row)
            if AgentState(row.state) not in TERMINAL:
                rows = await Deployments(session, row.tenant).in_states(agent_id, STOPPABLE)
                await stop_rows(session, rows, "its agent was terminated")
                await dismiss(session, agent_id, self._at.settings, datetime.now(UTC))
                await agents.remove_secrets(row)
                told = move_row(row, AgentState.TERMINATED, datetime.now(UTC))
                await session.flush()
            [agent] = await agents.told([row])
        await self._tell(agent_id, told)
        return agent

    async def _tell(self, agent_id: int, told: Mapping[str, str]) -> None:
        if told:
            event = AgentEvent(
                event=EventKind.STATE, agent_id=agent_id, data={**told, "by": self._caller.name}
            )
            await tell(self._at.redis, self._at.app.keys, event)


async def raises_approved_budget(
    session: Session, row: AgentRow, before: AgentSpec, to_micro: int, *, keeps: bool = False
) -> bool:
    """Whether more may be spent than somebody has approved; what has stopped may be started again.

    An admin may have set the budget itself, to less than its newest version says or to more: a new version is
    measured by the lower of both, a budget that `keeps` the version by the higher one.
    """
    if not POLICIES[before.type].needs_approval:
        return False
    now = datetime.now(UTC)
    own = [budget_of(one, now) for one in await Holding(session, row.tenant, now).budgets([_owner(row)])]
    among = [_most_micro(before), *(one.limit_micro for one in own)]
    if to_micro <= (max(among) if keeps else min(among)):
        return False
    return await Deployments(session, row.tenant).was_approved(row.id)


async def _passes_by(session: Session, row: AgentRow, to_micro: int) -> bool:
    """Whether it is more than somebody else than the owner has last set the agent's budget to."""
    if not POLICIES[AgentType(row.type)].spends:
        return False  # no version of it sets a budget
    given_micro = await Holding(session, row.tenant, datetime.now(UTC)).given_by_others(
        _owner(row), row.owner
    )
    return given_micro is not None and to_micro > given_micro


async def _give_budget(
    session: Session, row: AgentRow, spec: AgentSpec, caller: Caller, instead: AgentSpec | None = None
) -> None:
    """Set the budget of an agent that may spend; one without a limit any more has one that nobody reaches."""
    if not POLICIES[spec.type].spends or (spec.budget_micro is None and instead is None):
        return
    most_micro = _most_micro(spec)
    await set_budget(session, _owner(row), most_micro, tenant=row.tenant, by=caller.name, period=None)


UNREACHED = 9 * 10**15  #: the most that a budget can be


def may_spend_more(spec: AgentSpec, than: AgentSpec) -> bool:
    """Whether its budget is the larger one; that of a version without one is the largest."""
    return _most_micro(spec) > _most_micro(than)


def _most_micro(spec: AgentSpec) -> int:
    return UNREACHED if spec.budget_micro is None else spec.budget_micro


def _owner(row: AgentRow) -> Owner:
    return Owner(OwnerKind.AGENT, str(row.id))


# --- for what runs ------------------------------------------------------------------------


class Trainable(NamedTuple):
    """An agent as it was allowed to be trained."""

    tenant: str
    version: int
    spec: AgentSpec  #: of that version, with the image that is to be run
    spends: bool  #: False: its training leaves its own budget as it is
    owners: tuple[Owner, ...]  #: for whom it is in the ledger, beside its job


async def invocable(
    session: Session,
    agent_id: int,
    caller: Caller,
    *,
    settings: Settings,
    model: str | None = None,
    subject: str = "",
) -> Invocable:
    """What the agent may do in one invocation that the caller asks for; the decision is in the audit.

    To be called in a `trail`. `model` is what the invocation names, `subject` what the audit calls it. Raises
    NotFound, PolicyViolated, Conflict.
    """
    row = await found(session, caller, agent_id)
    policy = POLICIES[AgentType(row.type)]
    number: int | None = None
    if policy.needs_deployment:
        number = await Deployments(session, row.tenant).running_version(agent_id)
    version = await spec_of(session, row, number)
    asked = asked_of(caller, row, version.spec, settings)
    config = version.spec.config
    chosen = _text(config.get("model"))
    if asked.limits.runs_per_hour is not None:
        row = await found(session, caller, agent_id, lock=True)  # or two are the last one
        runs = await Decisions(session, row.tenant).allowed_since(
            agent_id, Act.INVOKE.value, datetime.now(UTC) - HOUR
        )
        asked = asked._replace(runs_last_hour=runs, state=AgentState(row.state))
    asked = asked._replace(model=chosen or model, deployed=number is not None)
    await judge(session, caller, Act.INVOKE, asked, agent=row, subject=subject)
    options = config.get("options")
    return Invocable(
        agent_id=agent_id,
        version=version.version,
        tenant=row.tenant,
        owner=row.owner,
        type=version.spec.type,
        spends=policy.spends,
        owners=(_owner(row), Owner(OwnerKind.USER, caller.name)),
        agent=_text(config.get("agent")) or "chat",
        model=chosen,
        system_prompt=_text(config.get("system_prompt")),
        options=options if isinstance(options, dict) else {},
        limits=asked.limits,
        stops_at_limit=policy.stops_at_limit,
        logs_everything=policy.logs_everything,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


async def trainable(
    session: Session,
    agent_id: int,
    caller: Caller,
    *,
    settings: Settings,
    version: int | None = None,
    image: str | None = None,
    subject: str = "",
) -> Trainable:
    """What the agent may do in one training job that the caller asks for; the decision is in the audit.

    To be called in a `trail`. `version` None: the newest; `image` is what the job names in place of the
    agent's. Raises NotFound, PolicyViolated, NotAllowed, Conflict.
    """
    row = await found(session, caller, agent_id)
    of = await spec_of(session, row, version)
    spec = of.spec if image is None else of.spec.model_copy(update={"docker_image": image})
    asked = asked_of(caller, row, spec, settings)
    await judge(session, caller, Act.TRAIN, asked, agent=row, subject=subject)
    return Trainable(
        tenant=row.tenant,
        version=of.version,
        spec=spec,
        spends=asked.policy.spends,
        owners=(_owner(row), Owner(OwnerKind.USER, caller.name)),
    )
