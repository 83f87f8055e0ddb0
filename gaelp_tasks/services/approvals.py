"""Approvals of deployments: whose work nobody of them approves himself, and when an approval holds no more.

Versions never change, so neither does the environment of what was approved. Secrets do: then all that was
approved with them waits for another approval.
"""

from datetime import UTC, datetime

from gaelp_tasks.db.agent_rows import AgentRow, DeploymentRow
from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Session
from gaelp_tasks.db.deployments import Deployments
from gaelp_tasks.models.agent import AgentType
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.deployment import DeploymentState
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.models.policy import POLICIES, Act, Decision
from gaelp_tasks.services import quotas
from gaelp_tasks.services.audit import happened
from gaelp_tasks.services.moves import become, quota_key
from gaelp_tasks.services.place import At
from gaelp_tasks.services.telling import tell

__all__ = ["authors", "tell_withdrawn", "withdraw"]

CHANGED = "its secrets were changed after its approval"


async def authors(session: Session, agent: AgentRow, row: DeploymentRow) -> frozenset[str]:
    """All those whose work would run.

    That is the agent's owner, who asked for the deployment, who set a secret or changed them last, and who
    made the version and those that it came from, back to one that somebody has approved before.
    """
    agents = Agents(session, agent.tenant)
    found = {agent.owner, row.created_by, agent.secrets_by, *await agents.secret_authors(agent.id)}
    made = await agents.lineage(agent.id, row.version)
    looked_at = await Deployments(session, agent.tenant).approved_versions(agent.id)
    number = row.version
    while number in made:
        author, again = made[number]
        found.add(author)
        if number in looked_at:
            break
        number = again or number - 1
    return frozenset(found - {""})


async def withdraw(session: Session, caller: Caller, agent: AgentRow) -> dict[int, str]:
    """The secrets of a locked agent were changed: no approval of its deployments holds; what those were.

    What runs by one stops. Nothing where deployments of its type need no approval.
    """
    if not POLICIES[AgentType(agent.type)].needs_approval:
        return {}
    was: dict[int, str] = {}
    for row in sorted(await Deployments(session, agent.tenant).approved(agent.id), key=lambda row: row.id):
        was[row.id] = row.state
        become(row, DeploymentState.PENDING, CHANGED)
        row.withdrawn_at = datetime.now(UTC)
        await quotas.release(session, quota_key(row), tenant=row.tenant)
        await happened(
            session,
            agent,
            Decision(Act.WITHDRAW, "", ""),
            actor=caller.name,
            role=caller.role.value,
            subject=f"deployment {row.id}",
            why=CHANGED,
        )
    return was


async def tell_withdrawn(at: At, caller: Caller, agent_id: int, was: dict[int, str]) -> None:
    """Tell who watches the agent, after the transaction."""
    for number, state in was.items():
        data = {"deployment_id": number, "status": DeploymentState.PENDING.value, "was": state}
        event = AgentEvent(
            event=EventKind.STATE, agent_id=agent_id, data={**data, "by": caller.name, "why": CHANGED}
        )
        await tell(at.redis, at.app.keys, event)
