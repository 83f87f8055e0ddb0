"""Metrics of agents."""

from typing import Annotated

from fastapi import APIRouter, Query

from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.routes.agents import AgentId, Here, User
from gaelp_tasks.models.measurement import AgentMetrics, NewMetrics
from gaelp_tasks.models.schedule import Moment
from gaelp_tasks.models.stored import LONGEST_ID
from gaelp_tasks.services import metrics

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/agents/{agent_id}/metrics", tags=["metrics"])


@router.post("", status_code=201)
async def record(at: Here, caller: User, agent_id: AgentId, new: NewMetrics) -> AgentMetrics:
    """Record metrics, and tell who watches the agent."""
    return await metrics.record_for(at, caller, agent_id, new)


@router.get("")
async def listed(
    at: Here,
    caller: User,
    agent_id: AgentId,
    page: Paged,
    job_id: Annotated[int | None, Query(ge=1, le=LONGEST_ID)] = None,
    since: Moment | None = None,
) -> list[AgentMetrics]:
    """Metrics of an agent, the newest first."""
    return await metrics.listed(
        at, caller, agent_id, job_id=job_id, since=since, most=page.limit, skip=page.skip
    )
