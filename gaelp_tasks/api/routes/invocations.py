"""Invocations: submitted, watched, cancelled."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import JSONResponse, Response

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.event_stream import EventStream
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.db.accepted import Which
from gaelp_tasks.models.acceptance import Submission
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.invocations import Invocations
from gaelp_tasks.services.reading import read, resume_from

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/invocations", tags=["invocations"])

At = Annotated[State, here]
User = Annotated[Caller, needs(Role.USER)]
Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9-]{1,36}$", description="as POST has answered")]
Name = Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")]
Key = Annotated[str | None, Header(min_length=1, max_length=200)]

LastId = Annotated[str | None, Header(max_length=50)]


def _of(at: State, caller: Caller) -> Invocations:
    return Invocations(at.app, at.db, caller)


@router.post("", status_code=202)
async def submit(at: At, caller: User, body: Submission, idempotency_key: Key = None) -> Response:
    """Accept an invocation; from now on it has an end, which its id leads to."""
    row = await at.accepting.submit(body, caller, key=idempotency_key)
    place = f"/api/v1/invocations/{row.id}"
    return JSONResponse({"id": row.id, "state": "queued"}, 202, {"Location": place})


@router.get("")
async def listed(
    at: At,
    caller: User,
    page: Paged,
    *,
    state: Annotated[Literal["accepted", "published", "done", "cut", "failed"] | None, Query()] = None,
    tier: Annotated[Tier | None, Query()] = None,
    agent: Name = "",
    model: Name = "",
    agent_id: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
) -> list[dict[str, Any]]:
    """Invocations, the newest first; `state` as the database has it."""
    which = Which(state or "", tier or "", agent, model, agent_id)
    return await _of(at, caller).listed(which, most=page.limit, skip=page.skip)


@router.get("/{invocation_id}")
async def show(at: At, caller: User, invocation_id: Id) -> dict[str, Any]:
    """One with its state, its place in the queue and why it waits, or its result."""
    return await _of(at, caller).show(invocation_id)


@router.get("/{invocation_id}/stream", response_class=EventStream, status_code=200)
async def stream(
    at: At,
    caller: User,
    invocation_id: Id,
    last_event_id: Annotated[str | None, Header(max_length=50)] = None,
) -> Response:
    """Its tokens as server-sent events: start, token, restart, end; `Last-Event-ID` goes on behind it."""
    after, mine = resume_from(last_event_id), _of(at, caller)
    await mine.row(invocation_id)
    return EventStream(read(at.app, lambda: mine.row(invocation_id), after), at.readers, caller)


@router.post("/{invocation_id}/cancel", status_code=202)
async def cancel(at: At, caller: User, invocation_id: Id) -> dict[str, Any]:
    """Have it stop, queued or running; it keeps its text so far."""
    return await _of(at, caller).cancel(invocation_id)
