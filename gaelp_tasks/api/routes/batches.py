"""Batches: thousands of requests from one file."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.caller import Caller, Role, TenantName
from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.invocation import PositiveSeconds, Tier
from gaelp_tasks.models.schedule import Hours
from gaelp_tasks.services.batch_intake import BatchDesk

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/batches", tags=["batches"])

LINES = {"requestBody": {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}}}

At = Annotated[State, here]
User = Annotated[Caller, needs(Role.USER)]
Id = Annotated[str, Path(pattern=r"^batch_[0-9a-f]{32}$", description="as POST has answered")]
Key = Annotated[str | None, Header(min_length=1, max_length=200)]
Tenant = Annotated[TenantName | None, Query(description="for an admin: whose, if not the own")]


class Options(Frozen):
    """What holds for a whole batch."""

    tier: Literal[Tier.BATCH, Tier.BACKGROUND] = Tier.BATCH
    model: str | None = None  #: of lines that name none
    agent: str | None = None  #: of lines that name none
    name: str = ""  #: of the file
    within_s: PositiveSeconds | None = None  #: what has not ended by then becomes an error
    window: tuple[str, ...] = ()  #: begin lines then only, as in `mon-fri 22:00-06:00`
    zone: str = "UTC"  #: of the windows
    tenant: TenantName | None = None  #: for an admin: whose, if not the own


def _of(at: State, caller: Caller, tenant: str | None) -> BatchDesk:
    return BatchDesk(at, caller, caller.tenant_for(tenant))


@router.post("", status_code=201, openapi_extra=LINES)
async def submit(
    at: At,
    caller: User,
    request: Request,
    options: Annotated[Options, Query()],
    idempotency_key: Key = None,
) -> dict[str, Any]:
    """Take in a file of requests, JSONL as the body; a line that cannot be read harms no other."""
    hours = Hours.parse(options.window, options.zone) if options.window else None
    defaults = Defaults(Tier(options.tier), options.model or None, options.agent or None)
    desk = _of(at, caller, options.tenant)
    return await desk.submit(
        request.stream(),
        defaults,
        name=options.name,
        within_s=options.within_s,
        hours=hours,
        key=idempotency_key,
    )


@router.get("")
async def listed(at: At, caller: User, page: Paged, tenant: Tenant = None) -> list[dict[str, Any]]:
    """Batches, the newest first."""
    return await _of(at, caller, tenant).listed(most=page.limit, skip=page.skip)


@router.get("/{batch_id}")
async def show(at: At, caller: User, batch_id: Id, tenant: Tenant = None) -> dict[str, Any]:
    """How far one is, and how long it will take."""
    return await _of(at, caller, tenant).show(batch_id)


@router.get("/{batch_id}/results", response_class=StreamingResponse)
async def results(
    at: At, caller: User, batch_id: Id, *, errors: bool = False, tenant: Tenant = None
) -> Response:
    """Its results so far as JSONL, in the order of the file; with `errors` the lines without one."""
    told = await _of(at, caller, tenant).results(batch_id, errors=errors)
    return StreamingResponse(told, media_type="application/jsonl")


@router.post("/{batch_id}/cancel", status_code=202)
async def cancel(at: At, caller: User, batch_id: Id, tenant: Tenant = None) -> dict[str, Any]:
    """Stop it: what has ended is kept, what runs is stopped, the rest never runs."""
    return await _of(at, caller, tenant).cancel(batch_id)


@router.delete("/{batch_id}", status_code=204)
async def remove(at: At, caller: User, batch_id: Id, tenant: Tenant = None) -> Response:
    """Delete one that is over, with what it asked and what was answered."""
    await _of(at, caller, tenant).remove(batch_id)
    return Response(status_code=204)
