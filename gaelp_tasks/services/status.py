"""The system at a glance: is it well, how much of everything is there."""

import asyncio
from typing import Any

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import AsyncRedis, unavailable
from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.jobs import Jobs
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.models.training import JobState
from gaelp_tasks.overview import live_nodes

__all__ = ["health_of", "status_of"]

ANSWER_S = 2.0  #: for each of the two


async def health_of(db: Database, redis: AsyncRedis) -> dict[str, str]:
    """`database` and `redis`: "ok", or that it does not answer; says no address, for anybody may ask."""
    sql, broker = await asyncio.gather(_answers(db.revision()), _answers(redis.ping()))
    return {"database": sql, "redis": broker}


async def _answers(question: Any) -> str:
    try:
        async with asyncio.timeout(ANSWER_S):
            await question
    except (DatabaseUnavailable, TimeoutError, *unavailable):
        return "does not answer"
    return "ok"


async def status_of(app: GaelpApp, db: Database, tenant: str | None) -> dict[str, Any]:
    """The contract's keys; `tenant` None: of all. Raises BrokerUnavailable, DatabaseUnavailable."""
    nodes = await asyncio.to_thread(live_nodes, app)
    jobs = await Jobs(db, tenant).counts()
    async with db.reading() as session:
        total, active = await Agents(session, tenant).counts()
    return {
        "job_counts": {state.value: jobs.get(state, 0) for state in (JobState.QUEUED, JobState.RUNNING)},
        "agent_counts": {"total": total, "active": active},
        "cluster_resources": {"nodes": len(nodes)},
        "scheduler_status": "unknown",
    }
