"""Deployments of agents."""

from typing import Annotated

from fastapi import APIRouter, Path

from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.routes.agents import AgentId, Here, User
from gaelp_tasks.models.deployment import AgentDeployment, DeploymentState, NewDeployment
from gaelp_tasks.models.stored import LONGEST_ID
from gaelp_tasks.services.deployments import DeploymentService

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/agents/{agent_id}/deployments", tags=["deployments"])

DeploymentId = Annotated[int, Path(ge=1, le=LONGEST_ID)]
AS_USUAL = NewDeployment()


@router.post("", status_code=201)
async def deploy(at: Here, caller: User, agent_id: AgentId, new: NewDeployment = AS_USUAL) -> AgentDeployment:
    """Ask for a deployment of a version; it waits until it is approved, where that is needed, and started."""
    return await DeploymentService(at, caller).add(agent_id, new)


@router.get("")
async def listed(
    at: Here, caller: User, agent_id: AgentId, page: Paged, status: DeploymentState | None = None
) -> list[AgentDeployment]:
    """The deployments of an agent, the oldest first."""
    service = DeploymentService(at, caller)
    return await service.listed(agent_id, status=status, most=page.limit, skip=page.skip)


@router.get("/{deployment_id}")
async def show(at: Here, caller: User, agent_id: AgentId, deployment_id: DeploymentId) -> AgentDeployment:
    """One deployment."""
    return await DeploymentService(at, caller).show(agent_id, deployment_id)


@router.post("/{deployment_id}/approve")
async def approve(at: Here, caller: User, agent_id: AgentId, deployment_id: DeploymentId) -> AgentDeployment:
    """Approve it: an operator does, who has made none of it; the audit hears of whoever tries."""
    return await DeploymentService(at, caller).approve(agent_id, deployment_id)


@router.post("/{deployment_id}/start")
async def start(at: Here, caller: User, agent_id: AgentId, deployment_id: DeploymentId) -> AgentDeployment:
    """Let it run."""
    return await DeploymentService(at, caller).start(agent_id, deployment_id)


@router.post("/{deployment_id}/stop")
async def stop(at: Here, caller: User, agent_id: AgentId, deployment_id: DeploymentId) -> AgentDeployment:
    """Let it run no more."""
    return await DeploymentService(at, caller).stop(agent_id, deployment_id)
