"""Tickets for WebSockets, for pages in a browser, which can send no header with one."""

from typing import Annotated

from fastapi import APIRouter, Response

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.state import State, here
from gaelp_tasks.connections import worded
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.ticket import Ticket
from gaelp_tasks.services.tickets import issue

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["watching"])


@router.post("/tickets", status_code=201)
async def create_ticket(
    at: Annotated[State, here], caller: Annotated[Caller, needs(Role.USER)], response: Response
) -> Ticket:
    """A ticket for one WebSocket, `/ws/1?ticket=...`; it must be used soon, and holds once."""
    response.headers["Cache-Control"] = "no-store"  # nor is it kept under an Idempotency-Key
    given = at.settings
    with worded(given):
        return await issue(
            at.redis,
            Keys(given.namespace),
            caller,
            ttl_s=given.api_ticket_ttl_s,
            open_s=given.jwt_ttl_s,
        )
