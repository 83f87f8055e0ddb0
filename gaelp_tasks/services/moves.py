"""Moves of agents and deployments that are locked, as their tables have them."""

from collections.abc import Iterable
from datetime import UTC, datetime

from gaelp_tasks.db.agent_rows import AgentRow, DeploymentRow
from gaelp_tasks.db.database import Session
from gaelp_tasks.errors import Conflict
from gaelp_tasks.models.agent import TERMINAL, AgentState, may_move
from gaelp_tasks.models.deployment import DeploymentState, may_become
from gaelp_tasks.services import quotas

__all__ = ["become", "move_row", "no_move", "not_to_become", "quota_key", "stop_rows"]


def no_move(row: AgentRow, to: AgentState) -> str:
    """Why an agent cannot come into a state; '' where it can, or is in it."""
    before = AgentState(row.state)
    return "" if before is to or may_move(before, to) else f"The agent is {before}, and cannot become {to}."


def not_to_become(row: DeploymentRow, to: DeploymentState) -> str:
    """Why a deployment cannot come into a state; '' where it can."""
    before = DeploymentState(row.state)
    return "" if may_become(before, to) else f"Deployment {row.id} is {before}, and cannot become {to}."


def move_row(row: AgentRow, to: AgentState, now: datetime) -> dict[str, str]:
    """Bring a locked agent into a state; what is told of it. Raises Conflict where no table has that move."""
    before = AgentState(row.state)
    if why_not := no_move(row, to):
        raise Conflict(why_not)
    row.state, row.updated_at = to.value, now
    if to in TERMINAL:
        row.ended_at = now
    return {"status": to.value, "was": before.value}


def become(row: DeploymentRow, to: DeploymentState, why: str = "") -> None:
    """Bring a locked deployment into a state. Raises Conflict where no table has that move."""
    if why_not := not_to_become(row, to):
        raise Conflict(why_not)
    row.state, row.why, row.updated_at = to.value, why, datetime.now(UTC)


def quota_key(row: DeploymentRow) -> str:
    """Under which a deployment that runs holds a part of its owner's quota."""
    return f"deployment:{row.id}"


async def stop_rows(session: Session, rows: Iterable[DeploymentRow], why: str) -> None:
    """Stop these, which are locked; what they held of quotas is given back."""
    for row in sorted(rows, key=lambda row: row.id):
        become(row, DeploymentState.STOPPED, why)
        await quotas.release(session, quota_key(row), tenant=row.tenant)
    await session.flush()
