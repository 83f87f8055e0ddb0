"""The system at a glance."""

from typing import Annotated, Any

from fastapi import APIRouter

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.state import State, here
from gaelp_tasks.models.caller import Caller, Role

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["status"])


@router.get("/status")
async def status(at: Annotated[State, here], caller: Annotated[Caller, needs(Role.USER)]) -> dict[str, Any]:
    """Jobs and agents of the caller's tenant, what the cluster has, and who schedules."""
    return await at.glance.status(caller.scope)
