"""What a training job needs of its agent."""

from typing import NamedTuple

from sqlalchemy import select

from gaelp_tasks.db.agent_rows import AgentRow, VersionRow
from gaelp_tasks.db.database import Session
from gaelp_tasks.models.agent import AgentSpec, AgentState

__all__ = ["Trained", "version_of"]


class Trained(NamedTuple):
    """One version of an agent."""

    tenant: str
    owner: str
    state: AgentState
    version: int
    spec: AgentSpec


async def version_of(
    session: Session, agent_id: int, version: int | None, tenant: str | None
) -> Trained | None:
    """The version of that number, None the newest; None where there is none for this tenant."""
    asked = select(AgentRow, VersionRow).join(VersionRow, VersionRow.agent == AgentRow.id)
    asked = asked.where(
        AgentRow.id == agent_id, VersionRow.number == (AgentRow.version if version is None else version)
    )
    if tenant is not None:
        asked = asked.where(AgentRow.tenant == tenant)
    found = (await session.execute(asked)).one_or_none()
    if found is None:
        return None
    agent, kept = found
    return Trained(agent.tenant, agent.owner, AgentState(agent.state), kept.number, AgentSpec.read(kept.spec))
