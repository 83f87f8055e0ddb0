"""Counts over all tenants, for those who run the cluster: nothing in them is anybody's."""

from sqlalchemy import func, select

from gaelp_tasks.db.agent_rows import AgentRow
from gaelp_tasks.db.database import Database
from gaelp_tasks.metrics.control_plane import Plane
from gaelp_tasks.models.agent import AgentState

__all__ = ["plane_now"]


async def plane_now(db: Database) -> Plane:
    """What SQL tells Prometheus. Raises DatabaseUnavailable."""
    async with db.reading() as session:
        asked = select(AgentRow.state, func.count()).group_by(AgentRow.state)
        agents = dict((await session.execute(asked)).tuples().all())
    return Plane(
        agents={state.value: agents.get(state.value, 0) for state in AgentState},
        jobs={},
        durations={},
        held={},
        relay_waiting=0,
        relay_oldest_s=0.0,
    )
