"""Metrics of agents in SQL: the newest of each are kept."""

from datetime import datetime
from typing import Any

from sqlalchemy import delete, select

from gaelp_tasks.db.agent_rows import AgentRow, MetricsRow
from gaelp_tasks.db.database import Session
from gaelp_tasks.models.measurement import AgentMetrics, NewMetrics, ResourceUse

__all__ = ["Measurements"]


class Measurements:
    """The metrics of one tenant within a transaction; of all tenants, for admins, with None."""

    def __init__(self, session: Session, tenant: str | None) -> None:
        self._session = session
        self._tenant = tenant

    async def add(self, agent: AgentRow, new: NewMetrics, *, now: datetime) -> AgentMetrics:
        """Keep a record."""
        row = MetricsRow(
            agent=agent.id,
            tenant=agent.tenant,
            at=now,
            step=new.step,
            job=new.job_id,
            values=new.values,
            resources=None if new.resources is None else new.resources.model_dump(exclude_none=True),
        )
        self._session.add(row)
        await self._session.flush()
        return _told(row)

    async def listed(
        self,
        agent_id: int,
        *,
        job_id: int | None = None,
        since: datetime | None = None,
        most: int,
        skip: int = 0,
    ) -> list[AgentMetrics]:
        """Up to `most`, the newest first, after `skip`."""
        asked = self._mine(select(MetricsRow)).where(MetricsRow.agent == agent_id)
        if job_id is not None:
            asked = asked.where(MetricsRow.job == job_id)
        if since is not None:
            asked = asked.where(MetricsRow.at >= since)
        rows = await self._session.scalars(asked.order_by(MetricsRow.id.desc()).offset(skip).limit(most))
        return [_told(row) for row in rows]

    async def keep_newest(self, agent_id: int, count: int) -> int:
        """Throw away all but the newest so many of an agent; how many these were."""
        mine = self._mine(select(MetricsRow.id)).where(MetricsRow.agent == agent_id)
        oldest_kept = mine.order_by(MetricsRow.id.desc()).offset(count - 1).limit(1).scalar_subquery()
        gone = delete(MetricsRow).where(MetricsRow.agent == agent_id, MetricsRow.id < oldest_kept)
        return await self._deleted(gone)

    async def prune(self, before: datetime, most: int) -> int:
        """Throw away up to `most` that are older; how many these were."""
        old = self._mine(select(MetricsRow.id)).where(MetricsRow.at < before).limit(most).scalar_subquery()
        return await self._deleted(delete(MetricsRow).where(MetricsRow.id.in_(old)))

    async def _deleted(self, gone: Any) -> int:
        done: Any = await self._session.execute(gone, execution_options={"synchronize_session": False})
        return int(done.rowcount)

    def _mine(self, rows: Any) -> Any:
        return rows if self._tenant is None else rows.where(MetricsRow.tenant == self._tenant)


def _told(row: MetricsRow) -> AgentMetrics:
    return AgentMetrics(
        id=row.id,
        agent_id=row.agent,
        at=row.at,
        step=row.step,
        job_id=row.job,
        values=row.values,
        resources=None if row.resources is None else ResourceUse(**row.resources),
    )
