"""What Prometheus reads, for who is signed in; `gaelp api` serves it without a login on loopback, too."""

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.state import State, here
from gaelp_tasks.metrics.page import CONTENT_TYPE
from gaelp_tasks.models.caller import Caller, Role

__all__ = ["router"]

router = APIRouter(tags=["status"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(
    at: Annotated[State, here], _: Annotated[Caller, needs(Role.OPERATOR)]
) -> PlainTextResponse:
    """Requests, agents, jobs and the cluster, in Prometheus' text format; it knows no tenants."""
    return PlainTextResponse(await at.exporter.told(), media_type=CONTENT_TYPE)
