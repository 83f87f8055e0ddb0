"""An agent at work somewhere: which version, where, how many of it; the states and their moves. Pure.

pending ──> approved ──> running <──> stopped
   │            └───────────│────────────^
   └────────────────────────┴──> failed ─┘     (what needs no approval goes from pending to running)

What was approved goes back to pending, wherever it is, when its approval is taken back.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.stored import Version

__all__ = [
    "DEPLOYMENT_MOVES",
    "AgentDeployment",
    "DeploymentState",
    "Environment",
    "NewDeployment",
    "may_become",
]

MOST_REPLICAS = 1000


class Environment(StrEnum):
    """Where a deployment works."""

    SIMULATION = "simulation"
    STAGING = "staging"
    PRODUCTION = "production"  #: the real one: real money, real customers


class DeploymentState(StrEnum):
    """Where a deployment is."""

    PENDING = "pending"  #: asked for
    APPROVED = "approved"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


_D = DeploymentState
DEPLOYMENT_MOVES: dict[DeploymentState, frozenset[DeploymentState]] = {
    _D.PENDING: frozenset({_D.APPROVED, _D.RUNNING, _D.STOPPED, _D.FAILED}),
    _D.APPROVED: frozenset({_D.RUNNING, _D.STOPPED, _D.FAILED, _D.PENDING}),
    _D.RUNNING: frozenset({_D.STOPPED, _D.FAILED, _D.PENDING}),
    _D.STOPPED: frozenset({_D.RUNNING, _D.PENDING}),
    _D.FAILED: frozenset({_D.RUNNING, _D.STOPPED, _D.PENDING}),
}


def may_become(before: DeploymentState, after: DeploymentState) -> bool:
    """Whether the table has this move."""
    return after in DEPLOYMENT_MOVES[before]


class NewDeployment(Frozen):
    """What is asked for."""

    version: Version | None = None  #: None: the newest
    environment: Environment | None = None  #: None: the one for its type of agent
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS)] = 1


class AgentDeployment(Frozen):
    """A deployment as it stands."""

    id: int
    agent_id: int
    tenant: str
    version: int
    environment: Environment
    replicas: int
    status: DeploymentState
    created_by: str
    approved_by: str | None  #: None: nobody has
    approved_at: datetime | None
    why: str  #: it is as it is, where that is not plain; '' otherwise
    created_at: datetime
    updated_at: datetime
