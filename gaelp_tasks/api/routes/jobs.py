"""Training jobs: submitted, listed, read, cancelled, paused, resumed."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import JSONResponse, Response

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.event_stream import EventStream
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.db.jobs import Jobs
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.stored import LONGEST_ID
from gaelp_tasks.models.training import JobState, NewJob, TrainingJob
from gaelp_tasks.services import jobs
from gaelp_tasks.services.reading import SILENCE, Told

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

Here = Annotated[State, here]
User = Annotated[Caller, needs(Role.USER)]
JobId = Annotated[int, Path(ge=1, le=LONGEST_ID)]
Line = Annotated[int, Query(ge=0, le=LONGEST_ID, description="lines behind this number")]


@router.post("", status_code=201)
async def submit(at: Here, caller: User, body: NewJob) -> TrainingJob:
    """Put a training job into the line."""
    return await jobs.submit(at, caller, body)


@router.get("")
async def listed(
    at: Here,
    caller: User,
    page: Paged,
    status: JobState | None = None,
    agent_id: Annotated[int | None, Query(ge=1, le=LONGEST_ID)] = None,
) -> list[TrainingJob]:
    """Training jobs, the newest first."""
    own = Jobs(at.db, caller.scope)
    return await own.listed(skip=page.skip, limit=page.limit, state=status, agent_id=agent_id)


@router.get("/{job_id}")
async def show(at: Here, caller: User, job_id: JobId) -> TrainingJob:
    """One job as it stands."""
    return await jobs.find(at, caller, job_id)


@router.get("/{job_id}/logs")
async def logs(
    at: Here,
    caller: User,
    job_id: JobId,
    after: Line = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    *,
    follow: Annotated[bool, Query(description="as server-sent events, until the job has ended")] = False,
    last_event_id: Annotated[str | None, Header(max_length=20, pattern="^[0-9]{1,18}$")] = None,
) -> Response:
    """Lines of its log, the oldest first: their number, run, stream, time and text."""
    if not follow:
        found = await jobs.logs(at, caller, job_id, after=after, limit=limit)
        return JSONResponse([line.wire() for line in found])
    await jobs.find(at, caller, job_id)
    behind = int(last_event_id) if last_event_id else after
    return EventStream(_events(at, caller, job_id, behind), at.readers, caller)


@router.get("/{job_id}/checkpoints")
async def checkpoints(at: Here, caller: User, job_id: JobId, page: Paged) -> list[dict[str, Any]]:
    """Its checkpoints, the newest first."""
    found = await jobs.checkpoints(at, caller, job_id, skip=page.skip, limit=page.limit)
    return [one._asdict() for one in found]


@router.post("/{job_id}/cancel")
async def cancel(at: Here, caller: User, job_id: JobId) -> TrainingJob:
    """End it; what runs may save itself first, and shows as running until then."""
    return await jobs.cancel(at, caller, job_id)


@router.post("/{job_id}/pause")
async def pause(at: Here, caller: User, job_id: JobId) -> TrainingJob:
    """Have it wait with its last checkpoint; what runs may save itself first."""
    return await jobs.pause(at, caller, job_id)


@router.post("/{job_id}/resume")
async def resume(at: Here, caller: User, job_id: JobId) -> TrainingJob:
    """Put a paused one into the line again."""
    return await jobs.resume(at, caller, job_id)


async def _events(at: State, caller: Caller, job_id: int, after: int) -> AsyncGenerator[Told, None]:
    """Each line, and at the end the job."""
    async for line in jobs.follow(at, caller, job_id, after=after):
        yield Told("line", line.wire(), str(line.number)) if line else SILENCE
    job = await jobs.find(at, caller, job_id)
    yield Told("end", job.wire())
