"""What agents are measured by: kept, bounded by age and count, and told to those who watch."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime

from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.measurements import Measurements
from gaelp_tasks.errors import NotFound
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.models.measurement import AgentMetrics, NewMetrics
from gaelp_tasks.models.policy import Act, decide
from gaelp_tasks.services.ageing import throw_away
from gaelp_tasks.services.agents import asked_of, found, spec_of
from gaelp_tasks.services.place import At
from gaelp_tasks.services.telling import tell

__all__ = ["listed", "prune", "record", "record_all", "record_for"]

LOOKS_AFTER = 50  #: one record in so many throws away what is too much; so there are hardly more
AT_ONCE = 1000  #: rows of one transaction


async def record(at: At, agent_id: int, metrics: NewMetrics, *, tenant: str | None = None) -> AgentMetrics:
    """Keep them, and tell who watches. Raises NotFound; `tenant` None: whoever's agent it is."""
    [kept] = await record_all(at, agent_id, [metrics], tenant=tenant)
    return kept


async def record_all(
    at: At, agent_id: int, several: Sequence[NewMetrics], *, tenant: str | None = None
) -> list[AgentMetrics]:
    """The same for several records, in one transaction."""
    async with at.db.writing() as session:
        agent = await Agents(session, tenant).row(agent_id)
        if agent is None:
            raise NotFound(f"There is no agent {agent_id}.")
        own, now = Measurements(session, agent.tenant), datetime.now(UTC)
        kept = [await own.add(agent, metrics, now=now) for metrics in several]
        if random.randrange(LOOKS_AFTER) < len(several):  # noqa: S311  no secret
            await own.keep_newest(agent_id, at.settings.agent_metrics_keep)
    for one in kept:
        data = one.model_dump(mode="json")
        await tell(at.redis, at.app.keys, AgentEvent(event=EventKind.METRICS, agent_id=agent_id, data=data))
    return kept


async def record_for(at: At, caller: Caller, agent_id: int, metrics: NewMetrics) -> AgentMetrics:
    """The same for somebody who asks. Raises NotFound, NotAllowed, Conflict."""
    async with at.db.reading() as session:
        agent = await found(session, caller, agent_id)
        spec = (await spec_of(session, agent)).spec
        decision = decide(Act.RECORD, asked_of(caller, agent, spec, at.settings))
    if not decision.allowed:  # recording is no decision of the audit: the records are
        raise decision.refusal(decision.why)
    return await record(at, agent_id, metrics, tenant=agent.tenant)


async def listed(
    at: At,
    caller: Caller,
    agent_id: int,
    *,
    job_id: int | None = None,
    since: datetime | None = None,
    most: int,
    skip: int = 0,
) -> list[AgentMetrics]:
    """The newest first. Raises NotFound."""
    async with at.db.reading() as session:
        agent = await found(session, caller, agent_id)
        own = Measurements(session, agent.tenant)
        return await own.listed(agent_id, job_id=job_id, since=since, most=most, skip=skip)


async def prune(db: Database, keep_s: float, *, now: datetime | None = None) -> int:
    """Throw away what is older; how many. 0: nothing ever is. Raises DatabaseUnavailable."""

    async def some(session: Session, before: datetime) -> int:
        return await Measurements(session, None).prune(before, AT_ONCE)

    return await throw_away(db, keep_s, some, now=now)
