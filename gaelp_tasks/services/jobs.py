"""Training jobs as their users see them: submitted, listed, cancelled, paused, resumed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import unavailable
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.idempotency import note_made
from gaelp_tasks.db.job_rows import JobRow, job_of
from gaelp_tasks.db.jobs import AnyJobs, Jobs
from gaelp_tasks.errors import NotFound, QueueFull, QuotaExceeded
from gaelp_tasks.models.agent import USABLE, AgentType
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.policy import Act, Asked
from gaelp_tasks.models.quota import Share
from gaelp_tasks.models.training import (
    CHECKPOINTS,
    ENDED,
    Checkpoint,
    JobLog,
    JobState,
    NewJob,
    TrainingJob,
    Wish,
    may_move,
)
from gaelp_tasks.services import job_line
from gaelp_tasks.services.agents import found
from gaelp_tasks.services.audit import judge, trail
from gaelp_tasks.services.trainees import trainee
from gaelp_tasks.settings import Settings

__all__ = ["Desk", "cancel", "checkpoints", "find", "follow", "logs", "pause", "resume", "submit"]

RETRY_AFTER_S = 5.0  #: where the line is full
FOLLOW_S = 1.0  #: between two looks at the log of a job that runs


class Desk(Protocol):
    """What the verbs work with; the API's State is one."""

    @property
    def app(self) -> GaelpApp:
        """Publishes."""

    @property
    def db(self) -> Database:
        """Migrated."""

    @property
    def settings(self) -> Settings:
        """Of this process."""


async def submit(at: Desk, caller: Caller, asked: NewJob) -> TrainingJob:
    """A new job in the line.

    Raises QueueFull, QuotaExceeded where it would never fit, BudgetExceeded, NotFound without such an agent,
    PolicyViolated, Conflict.
    """
    now = datetime.now(UTC)
    async with trail(at.db) as session:
        agent = await trainee(session, caller, asked, at.settings)
        await _check_room(session, at.settings)
        needs = asked.resource_requirements.resources
        row = JobRow(
            tenant=agent.tenant,
            owner=caller.name,
            agent_id=asked.agent_id,
            agent_version=agent.version,
            name=asked.name,
            priority=asked.priority,
            state=JobState.QUEUED.value,
            reason="",
            wish="",
            **needs.model_dump(),
            hyperparameters=agent.hyperparameters,
            config=asked.config,
            preemptible=asked.preemptible,
            retries=asked.retries,
            timeout_s=asked.timeout_s or at.settings.training_timeout_s,
            docker_image=agent.image,
            task_id="",
            **dict.fromkeys(("claim", "attempts", "starts", "deaths", "preemptions", "lines"), 0),
            created_at=now,
            ran_s=0.0,
        )
        await AnyJobs(session).add(row)
        calls = await job_line.admit(session, row.tenant, row.owner, at.settings, now)
        if row.admitted_at is None:
            await _check_quota(session, row, at.settings)
        await job_line.hold(session, row, at.settings, spends=agent.spends, now=now)
        note_made(session, f"jobs/{row.id}")
        made = job_of(row)
    await job_line.publish(at.app, at.db, calls)
    return made


async def _check_room(session: Session, settings: Settings) -> None:
    """Raises QueueFull."""
    line = AnyJobs(session)
    await line.alone()
    most = settings.training_max_queued
    if await line.queued() >= most:
        raise QueueFull(
            f"{most} training jobs wait already (GAELP_TRAINING_MAX_QUEUED): submit it later.",
            retry_after_s=RETRY_AFTER_S,
        )


async def _check_quota(session: Session, row: JobRow, settings: Settings) -> None:
    """Raises QuotaExceeded for a job that its owner's whole quota does not hold."""
    if more := Share.of(row.resources).beyond(await job_line.limit_of(session, row, settings)):
        raise QuotaExceeded(
            f"It asks for more {', '.join(more)} than the whole quota of {row.owner}: it would never fit.",
            never=True,
        )


async def find(at: Desk, caller: Caller, job_id: int) -> TrainingJob:
    """Raises NotFound."""
    job = await Jobs(at.db, caller.scope).find(job_id)
    if job is None:
        raise NotFound(f"There is no training job {job_id}.")
    return job


async def logs(at: Desk, caller: Caller, job_id: int, *, after: int, limit: int) -> list[JobLog]:
    """Lines behind number `after`. Raises NotFound."""
    await find(at, caller, job_id)
    return await Jobs(at.db, caller.scope).logs(job_id, after=after, limit=limit)


async def follow(at: Desk, caller: Caller, job_id: int, *, after: int) -> AsyncIterator[JobLog | None]:
    """Lines behind number `after` as they come, None now and then, until the job has ended."""
    jobs = Jobs(at.db, caller.scope)
    while True:
        job = await find(at, caller, job_id)
        lines = await jobs.logs(job_id, after=after)
        for line in lines:
            after = line.number
            yield line
        if not lines:
            if job.state in ENDED:
                return
            yield None
            await asyncio.sleep(FOLLOW_S)


async def checkpoints(
    at: Desk, caller: Caller, job_id: int, *, skip: int = 0, limit: int = CHECKPOINTS
) -> list[Checkpoint]:
    """The newest first. Raises NotFound."""
    await find(at, caller, job_id)
    return await Jobs(at.db, caller.scope).checkpoints(job_id, skip=skip, limit=limit)


async def cancel(at: Desk, caller: Caller, job_id: int) -> TrainingJob:
    """End it, wherever it stands; a run is stopped within a second or two, after its time to save itself.

    One that has ended stays as it is. Raises NotFound, NotAllowed.
    """
    return await _wish(at, caller, job_id, Wish.CANCEL)


async def pause(at: Desk, caller: Caller, job_id: int) -> TrainingJob:
    """Have it wait, with its last checkpoint, until it is resumed. Raises NotFound, NotAllowed, Conflict."""
    return await _wish(at, caller, job_id, Wish.PAUSE)


async def resume(at: Desk, caller: Caller, job_id: int) -> TrainingJob:
    """Put a paused one in the line again. Raises NotFound, NotAllowed, Conflict, QueueFull."""
    now = datetime.now(UTC)
    async with trail(at.db) as session:
        await AnyJobs(session).alone()
        row = await _row(at, session, caller, job_id)
        paused = row.state == JobState.PAUSED
        no_move = "" if paused else f"Job {job_id} is {row.state}: only a paused one is resumed."
        await _judge(session, caller, Act.RESUME, row, no_move)
        await _check_room(session, at.settings)
        row.state, row.reason, row.due_at = JobState.QUEUED.value, "", None
        calls = await job_line.admit(session, row.tenant, row.owner, at.settings, now)
        made = job_of(row)
    await job_line.publish(at.app, at.db, calls)
    return made


async def _wish(at: Desk, caller: Caller, job_id: int, wish: Wish) -> TrainingJob:
    to = JobState.CANCELLED if wish is Wish.CANCEL else JobState.PAUSED
    now, calls, runs = datetime.now(UTC), [], ""
    async with trail(at.db) as session:
        row = await _row(at, session, caller, job_id)
        before = JobState(row.state)
        stays = (before in ENDED and wish is Wish.CANCEL) or before == to
        no_move = "" if stays or may_move(before, to) else f"Job {job_id} is {before}: it cannot be {to}."
        await _judge(session, caller, Act(wish.value), row, no_move)
        if stays:
            return job_of(row)
        if before is JobState.RUNNING:
            row.wish, runs = wish.value, row.task_id
        else:
            row.state, row.reason, row.wish = to.value, f"{to.value} by {caller.name}", ""
            row.claim, row.task_id = 0, ""  # its message is void
            await job_line.leave(session, row)
            calls = await job_line.admit(session, row.tenant, row.owner, at.settings, now)
            if to is JobState.CANCELLED:
                row.ended_at = now
                await job_line.settle(session, row, at.settings, now)
        made = job_of(row)
    if runs:  # its runner looks each second, too
        with suppress(*unavailable):
            await asyncio.to_thread(
                request_cancel, at.app.redis, at.app.keys, runs, ttl_s=at.settings.cancel_ttl_s
            )
    await job_line.publish(at.app, at.db, calls)
    return made


async def _row(at: Desk, session: Session, caller: Caller, job_id: int) -> JobRow:
    row = await Jobs(at.db, caller.scope).row(session, job_id)
    if row is None:
        raise NotFound(f"There is no training job {job_id}.")
    return row


async def _judge(session: Session, caller: Caller, act: Act, row: JobRow, no_move: str) -> None:
    """Decide as about its agent. Raises NotAllowed, Conflict."""
    agent = await found(session, caller, row.agent_id)
    if act is Act.RESUME and not no_move and agent.state not in USABLE:
        no_move = f"Agent {agent.id} is {agent.state}: its jobs go on once it is running again."
    asked = Asked(
        type=AgentType(agent.type),
        caller=caller.name,
        is_operator=caller.role.covers(Role.OPERATOR),
        owner=row.owner,
        no_move=no_move,
    )
    await judge(session, caller, act, asked, agent=agent, subject=f"job {row.id}")
