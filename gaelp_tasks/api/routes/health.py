"""Whether this replica serves: its database and its Redis answer."""

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from gaelp_tasks.api.state import State, here

__all__ = ["router"]

router = APIRouter(tags=["status"])


@router.get("/health", responses={503: {"description": "SQL or Redis does not answer"}})
async def health(at: Annotated[State, here]) -> Any:
    """Whether SQL and Redis answer, each with what is wrong; 503 where one does not."""
    found = await at.glance.health()
    well = all(told == "ok" for told in found.values())
    return JSONResponse({"status": "ok" if well else "failed", **found}, 200 if well else 503)
