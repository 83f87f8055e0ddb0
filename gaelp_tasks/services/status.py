"""The system at a glance: is it well, how much of everything is there."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import AsyncRedis, unavailable
from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.jobs import Jobs
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.models.training import JobState
from gaelp_tasks.queues import INBOXES
from gaelp_tasks.survey import Figures, Survey

__all__ = ["Glance", "resources_of", "scheduler_of"]

ANSWER_S = 2.0  #: for SQL, and for Redis
REMEMBERED_S = 1.0  #: what is known of the cluster, for however many ask


class Glance:
    """Looks for all who ask: at most once at a time at what is well, once a second at the cluster."""

    def __init__(
        self, app: GaelpApp, db: Database, redis: AsyncRedis, tick: Callable[[], float] = monotonic
    ) -> None:
        self._db = db
        self._redis = redis
        self._survey = Survey(app)
        self._tick = tick
        self._checking: asyncio.Task[dict[str, str]] | None = None
        self._looking = asyncio.Lock()
        self._seen: tuple[float, Figures] | None = None

    async def health(self) -> dict[str, str]:
        """`database` and `redis`: "ok", or that it does not answer; no address, for anybody may ask."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        return await asyncio.shield(self._checking)

    async def _check(self) -> dict[str, str]:
        sql, broker = await asyncio.gather(_answers(self._db.ping()), _answers(self._redis.ping()))
        return {"database": sql, "redis": broker}

    async def status(self, tenant: str | None) -> dict[str, Any]:
        """The contract's keys; `tenant` None: jobs and agents of all.

        Raises BrokerUnavailable, DatabaseUnavailable.
        """
        figures = await self._cluster()
        jobs = await Jobs(self._db, tenant).counts()
        async with self._db.reading() as session:
            total, active = await Agents(session, tenant).counts()
        return {
            "job_counts": {state.value: jobs.get(state, 0) for state in (JobState.QUEUED, JobState.RUNNING)},
            "agent_counts": {"total": total, "active": active},
            "cluster_resources": resources_of(figures),
            "scheduler_status": scheduler_of(figures),
        }

    async def _cluster(self) -> Figures:
        async with self._looking:
            if self._seen is None or self._tick() >= self._seen[0]:
                figures = await asyncio.to_thread(self._survey.take)
                self._seen = self._tick() + REMEMBERED_S, figures
            return self._seen[1]


async def _answers(question: Any) -> str:
    try:
        async with asyncio.timeout(ANSWER_S):
            await question
    except (DatabaseUnavailable, TimeoutError, *unavailable):
        return "does not answer"
    return "ok"


def resources_of(figures: Figures) -> dict[str, Any]:
    """What all nodes have together, and what of it is taken; a node that is unwell or closed offers none."""
    nodes = figures.nodes
    offering = [node for node in nodes if node.healthy and not node.closed]
    return {
        "nodes": {"total": len(nodes), "healthy": sum(node.healthy for node in nodes)},
        "workers": len({node.worker for node in nodes}),
        "slots": {"total": sum(node.slots for node in offering), "busy": sum(node.busy for node in nodes)},
        "memory_bytes": {
            "total": sum(node.memory.total_bytes for node in nodes),
            "free": sum(node.memory.free_bytes for node in offering),
        },
        "tokens_per_s": round(sum(node.tokens_per_s for node in nodes), 1),
    }


def scheduler_of(figures: Figures) -> dict[str, Any]:
    """Whether work is taken and published: `status` is running, degraded (no beat leads), or stopped."""
    takes = any(node.healthy and not node.closed for node in figures.nodes)
    status = "stopped" if not takes else "running" if figures.beat_leads else "degraded"
    loads = figures.loads.items()
    queued = {tier: sum(load.queued for (of, _), load in loads if of == tier) for tier in INBOXES}
    return {"status": status, "beat_leads": figures.beat_leads, "queued": queued, "parked": figures.parked}
