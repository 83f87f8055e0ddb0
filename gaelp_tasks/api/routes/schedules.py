"""Schedules: what beat publishes, and when."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.models.caller import Caller, Role, TenantName
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.services.schedules import Timetables

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/schedules", tags=["schedules"])

At = Annotated[State, here]
User = Annotated[Caller, needs(Role.USER)]
Name = Annotated[str, Path(max_length=100, pattern=r"^[^\x00]+$", description="of the schedule")]
Tenant = Annotated[TenantName | None, Query(description="for an admin: whose, if not the own")]
Changes = Annotated[dict[str, Any], Body(description="fields of a schedule; null takes a value away")]


def _of(at: State, caller: Caller, tenant: str | None) -> Timetables:
    return Timetables(at.app, at.db, caller, caller.tenant_for(tenant))


@router.get("")
async def listed(at: At, caller: User, page: Paged, tenant: Tenant = None) -> list[dict[str, Any]]:
    """Every schedule by name, with its next due time."""
    return await _of(at, caller, tenant).listed(most=page.limit, skip=page.skip)


@router.post("", status_code=201)
async def add(at: At, caller: User, schedule: Schedule, tenant: Tenant = None) -> dict[str, Any]:
    """Have a prompt published by the clock: just one of `cron`, `interval_s` and `at` says when."""
    return await _of(at, caller, tenant).add(schedule)


@router.post("/{name:path}/pause")
async def pause(at: At, caller: User, name: Name, tenant: Tenant = None) -> dict[str, Any]:
    """Have nothing more of it published; what was goes on."""
    return await _of(at, caller, tenant).pause(name, paused=True)


@router.post("/{name:path}/resume")
async def resume(at: At, caller: User, name: Name, tenant: Tenant = None) -> dict[str, Any]:
    """Go on; what was due in between is not made up for."""
    return await _of(at, caller, tenant).pause(name, paused=False)


@router.post("/{name:path}/run", status_code=202)
async def run(at: At, caller: User, name: Name, tenant: Tenant = None) -> dict[str, Any]:
    """Publish a run at once, paused or not, beside those that are due."""
    return {"name": name, "id": await _of(at, caller, tenant).run(name)}


@router.get("/{name:path}")
async def show(at: At, caller: User, name: Name, tenant: Tenant = None) -> dict[str, Any]:
    """One with its next due times."""
    return await _of(at, caller, tenant).show(name)


@router.patch("/{name:path}")
async def edit(at: At, caller: User, name: Name, changes: Changes, tenant: Tenant = None) -> dict[str, Any]:
    """Change what is given and leave the rest; new times count from now."""
    return await _of(at, caller, tenant).edit(name, changes)


@router.delete("/{name:path}", status_code=204)
async def remove(at: At, caller: User, name: Name, tenant: Tenant = None) -> Response:
    """Forget it; what it has published goes on."""
    await _of(at, caller, tenant).remove(name)
    return Response(status_code=204)
