"""Counts over all tenants, for those who run the cluster: nothing in them is anybody's."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import case, func, select

from gaelp_tasks.db.accepted import AcceptedRow
from gaelp_tasks.db.agent_rows import AgentRow
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.job_rows import JobRow
from gaelp_tasks.metrics.control_plane import BUCKETS_S, MOST_AGENTS, Durations, Plane
from gaelp_tasks.models.acceptance import Standing
from gaelp_tasks.models.agent import AgentState
from gaelp_tasks.models.training import ENDED, JobState

__all__ = ["plane_now"]

NONE = Durations((0,) * len(BUCKETS_S), 0, 0.0)


async def plane_now(db: Database) -> Plane:
    """What SQL tells Prometheus. Raises DatabaseUnavailable."""
    async with db.reading() as session:
        agents = await _by(session, AgentRow.state)
        jobs = await _by(session, JobRow.state)
        durations = await _durations(session)
        waiting, oldest_s = await _relay(session)
        return Plane(
            agents={state.value: agents.get(state.value, 0) for state in AgentState},
            jobs={state.value: jobs.get(state.value, 0) for state in JobState},
            durations={state.value: durations.get(state.value, NONE) for state in ENDED},
            held=await _held(session),
            relay_waiting=waiting,
            relay_oldest_s=oldest_s,
        )


async def _by(session: Session, column: Any) -> dict[str, int]:
    return dict((await session.execute(select(column, func.count()).group_by(column))).tuples().all())


async def _durations(session: Session) -> dict[str, Durations]:
    within = [func.sum(case((JobRow.ran_s <= bound_s, 1), else_=0)) for bound_s in BUCKETS_S]
    asked = (
        select(JobRow.state, func.count(), func.sum(JobRow.ran_s), *within)
        .where(JobRow.state.in_([state.value for state in ENDED]))
        .group_by(JobRow.state)
    )
    return {
        state: Durations(tuple(int(number) for number in counts), ended, float(sum_s))
        for state, ended, sum_s, *counts in (await session.execute(asked)).all()
    }


async def _held(session: Session) -> Mapping[tuple[int, str], float]:
    """What the running jobs of each agent hold: cores, bytes, GPUs; of the newest agents."""
    asked = (
        select(
            JobRow.agent_id, func.sum(JobRow.cpu_milli), func.sum(JobRow.memory_bytes), func.sum(JobRow.gpus)
        )
        .where(JobRow.state == JobState.RUNNING.value)
        .group_by(JobRow.agent_id)
        .order_by(JobRow.agent_id.desc())
        .limit(10 * MOST_AGENTS)
    )
    held: dict[tuple[int, str], float] = {}
    for agent, cpu_milli, memory_bytes, gpus in (await session.execute(asked)).all():
        held |= {
            (agent, "cpu"): float(cpu_milli) / 1000,
            (agent, "memory"): float(memory_bytes),
            (agent, "gpu"): float(gpus),
        }
    return held


async def _relay(session: Session) -> tuple[int, float]:
    """How many submissions are accepted and not published, and how long the first of them has waited."""
    asked = select(func.count(), func.min(AcceptedRow.created_at)).where(
        AcceptedRow.standing == Standing.ACCEPTED.value
    )
    waiting, since = (await session.execute(asked)).one()
    return waiting, max(0.0, (datetime.now(UTC) - since).total_seconds()) if since else 0.0
