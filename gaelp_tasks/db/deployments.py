"""Deployments of agents in SQL."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import select

from gaelp_tasks.db.agent_rows import AgentRow, DeploymentRow
from gaelp_tasks.db.database import Session
from gaelp_tasks.models.deployment import AgentDeployment, DeploymentState, Environment

__all__ = ["Deployments", "deployment_of"]


class Deployments:
    """The deployments of one tenant within a transaction; of all tenants, for admins, with None."""

    def __init__(self, session: Session, tenant: str | None) -> None:
        self._session = session
        self._tenant = tenant

    async def add(
        self, agent: AgentRow, version: int, where: Environment, replicas: int, *, by: str, now: datetime
    ) -> DeploymentRow:
        """Keep a new one, which nobody has approved."""
        row = DeploymentRow(
            agent=agent.id,
            tenant=agent.tenant,
            version=version,
            environment=where.value,
            replicas=replicas,
            state=DeploymentState.PENDING.value,
            created_by=by,
            why="",
            created_at=now,
            updated_at=now,
        )
        self._session.add(row)
        await self._session.flush()
        return row

    async def row(self, agent_id: int, deployment_id: int, *, lock: bool = False) -> DeploymentRow | None:
        """The one of this id; with `lock`, to be changed, after its agent was locked."""
        asked = self._mine().where(DeploymentRow.agent == agent_id, DeploymentRow.id == deployment_id)
        if lock:
            asked = asked.with_for_update().execution_options(populate_existing=True)
        return (await self._session.scalars(asked)).one_or_none()

    async def listed(
        self, agent_id: int, *, status: DeploymentState | None = None, most: int, skip: int = 0
    ) -> list[AgentDeployment]:
        """Up to `most`, the oldest first, after `skip`."""
        asked = self._mine().where(DeploymentRow.agent == agent_id)
        if status is not None:
            asked = asked.where(DeploymentRow.state == status.value)
        rows = await self._session.scalars(asked.order_by(DeploymentRow.id).offset(skip).limit(most))
        return [deployment_of(row) for row in rows]

    async def in_states(self, agent_id: int, states: Iterable[DeploymentState]) -> list[DeploymentRow]:
        """Those in one of these states, the newest first, locked."""
        asked = self._mine().where(
            DeploymentRow.agent == agent_id, DeploymentRow.state.in_([state.value for state in states])
        )
        newest = asked.order_by(DeploymentRow.id.desc()).with_for_update()
        return list(await self._session.scalars(newest.execution_options(populate_existing=True)))

    async def was_approved(self, agent_id: int) -> bool:
        """Whether somebody has approved any of them, whatever became of it."""
        return (await self._session.scalars(self._looked_at(agent_id).limit(1))).first() is not None

    async def approved_versions(self, agent_id: int) -> set[int]:
        """The versions of those that somebody has approved, whatever became of it."""
        return {int(row.version) for row in await self._session.scalars(self._looked_at(agent_id))}

    async def approved(self, agent_id: int) -> list[DeploymentRow]:
        """Those whose approval holds, locked."""
        held = self._looked_at(agent_id).where(DeploymentRow.withdrawn_at.is_(None)).with_for_update()
        return list(await self._session.scalars(held.execution_options(populate_existing=True)))

    async def running_version(self, agent_id: int) -> int | None:
        """The version of the newest that runs; None where none does."""
        running = self._mine().where(
            DeploymentRow.agent == agent_id, DeploymentRow.state == DeploymentState.RUNNING.value
        )
        row = (await self._session.scalars(running.order_by(DeploymentRow.id.desc()).limit(1))).one_or_none()
        return None if row is None else int(row.version)

    def _looked_at(self, agent_id: int) -> Any:
        return self._mine().where(DeploymentRow.agent == agent_id, DeploymentRow.approved_at.is_not(None))

    def _mine(self) -> Any:
        rows = select(DeploymentRow)
        return rows if self._tenant is None else rows.where(DeploymentRow.tenant == self._tenant)


def deployment_of(row: DeploymentRow) -> AgentDeployment:
    """As it is told; an approval that was taken back is none."""
    holds = row.withdrawn_at is None
    return AgentDeployment(
        id=row.id,
        agent_id=row.agent,
        tenant=row.tenant,
        version=row.version,
        environment=Environment(row.environment),
        replicas=row.replicas,
        status=DeploymentState(row.state),
        created_by=row.created_by,
        approved_by=row.approved_by if holds else None,
        approved_at=row.approved_at if holds else None,
        why=row.why,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
