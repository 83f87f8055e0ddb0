"""A training job as its run sees it: taken over, told about, ended. All of it fenced.

A run has its job by the id of the newest message and the number of its claim. Whoever takes the job after it
has a higher one, and what the run before still wants to write is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.job_rows import JobRow, job_of
from gaelp_tasks.db.jobs import AnyJobs, Grip
from gaelp_tasks.models.agent import TERMINAL, USABLE, AgentState
from gaelp_tasks.models.training import ENDED, Checkpoint, JobState, Stream, TrainingJob, Wish
from gaelp_tasks.services import job_line
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.training_calls import Call
from gaelp_tasks.training.endings import Ending
from gaelp_tasks.training.output import Line

__all__ = ["Overtaken", "Report", "Taken", "begin", "end", "explain", "postpone", "prune", "tell"]

LONGEST_GAP_S = 60.0  #: between two reports that counts as run: a laptop may have slept
PAUSED_S = 5.0  #: between two looks whether an agent takes something new again
PRUNE_EACH = 100  #: lines behind which the log is cut again


class Overtaken(Exception):
    """Somebody else has the job, or it does not run any more: this run writes nothing."""


class Taken(NamedTuple):
    """What a message has led to."""

    job: TrainingJob | None  #: that is ours now; None: the message is void, or too early
    wait_until: datetime | None = None  #: where it is too early
    calls: Sequence[Call] = ()


@dataclass
class Report:
    """What a run has to tell."""

    lines: Sequence[Line] = ()
    checkpoints: Sequence[Checkpoint] = ()  #: new ones
    progress: float | None = None
    step: int | None = None
    notes: list[str] = field(default_factory=list)  #: ours, for the log


async def begin(db: Database, grip: Grip, settings: Settings, *, node: str, runner: str) -> Taken:
    """Take the job for a run; where one ran already, its worker has died. Raises DatabaseUnavailable."""
    now = datetime.now(UTC)
    async with db.writing() as session:
        row = await AnyJobs(session).addressed(grip)
        if row is None or row.state not in (JobState.QUEUED, JobState.RUNNING):
            return Taken(None)
        if row.state == JobState.QUEUED and row.due_at is not None and row.due_at > now:
            return Taken(None, row.due_at)
        if row.state == JobState.QUEUED and (state := await _paused(session, row)):
            row.reason = f"It waits: its agent is {state}."
            return Taken(None, now + timedelta(seconds=PAUSED_S))
        if row.wish:  # who ran it died before it could be done
            row.claim = grip.claim
            to = JobState.CANCELLED if row.wish == Wish.CANCEL else JobState.PAUSED
            return Taken(None, None, await _over(session, row, settings, to, to.value, now))
        notes = []
        if row.state == JobState.RUNNING:
            row.deaths += 1
            notes.append(f"The worker {row.node} was lost.")
            if row.deaths >= settings.poison_deaths:
                why = f"{row.deaths} workers were lost, one after another, without a new checkpoint"
                row.claim = grip.claim
                return Taken(None, None, await _over(session, row, settings, JobState.FAILED, why, now))
        else:
            row.attempts += 1
        row.claim, row.state, row.reason = grip.claim, JobState.RUNNING.value, ""
        row.node, row.runner = node, runner
        row.starts += 1
        row.exit_code, row.due_at = None, None
        row.run_at = row.seen_at = now
        row.started_at = row.started_at or now
        notes.append(f"Run {row.starts} begins on {node}.")
        await _write(session, row, Report(notes=notes), settings, now)
        return Taken(job_of(row))


async def _paused(session: Session, row: JobRow) -> AgentState | None:
    """The state of its agent where that takes nothing new for now; one that is gone fails at the start."""
    agent = await Agents(session, row.tenant).row(row.agent_id)
    if agent is None or (state := AgentState(agent.state)) in USABLE | TERMINAL:
        return None
    return state


async def postpone(db: Database, grip: Grip, why: str, after_s: float) -> list[Call]:
    """It cannot run here, or now: a message for later, `after_s` from now. Raises DatabaseUnavailable."""
    async with db.writing() as session:
        row = await AnyJobs(session).addressed(grip)
        if row is None or row.state != JobState.QUEUED:
            return []
        row.reason = why or row.reason
        call = job_line.again(row)
    return [call._replace(due_at=datetime.now(UTC) + timedelta(seconds=after_s))]


async def explain(db: Database, grip: Grip, why: str) -> None:
    """Why it waits still. Raises DatabaseUnavailable."""
    async with db.writing() as session:
        row = await AnyJobs(session).addressed(grip)
        if row is not None and row.state == JobState.QUEUED:
            row.reason = why


async def tell(db: Database, grip: Grip, report: Report, settings: Settings) -> tuple[Wish | None, float]:
    """Write down how it goes; what somebody wants of it, and how long it has run in all, seconds.

    Raises Overtaken, DatabaseUnavailable.
    """
    async with db.writing() as session:
        row = await _held(session, grip)
        await _write(session, row, report, settings, datetime.now(UTC))
        return Wish(row.wish) if row.wish else None, row.ran_s


async def end(
    db: Database, grip: Grip, ending: Ending, exit_code: int | None, report: Report, settings: Settings
) -> tuple[TrainingJob, list[Call]]:
    """The run is over; the job as it stands then, and messages to publish.

    Raises Overtaken, DatabaseUnavailable.
    """
    now = datetime.now(UTC)
    async with db.writing() as session:
        row = await _held(session, grip)
        to = ending.state
        if to is JobState.QUEUED and row.wish:  # somebody was faster
            to = JobState.CANCELLED if row.wish == Wish.CANCEL else JobState.PAUSED
        reason = ending.reason if to is ending.state else to.value
        row.exit_code = exit_code
        report.notes.append(f"Run {row.starts} is over: {reason or to.value}.")
        await _write(session, row, report, settings, now)
        if not ending.spends:
            row.attempts = max(0, row.attempts - 1)
        row.preemptions += ending.preempted
        calls: list[Call] = []
        if to in ENDED or to is JobState.PAUSED:
            calls = await _over(session, row, settings, to, reason, now)
        else:
            row.state, row.reason = JobState.QUEUED.value, reason
            row.due_at = now + timedelta(seconds=ending.after_s) if ending.after_s else None
            if not ending.gives_back:
                calls = [job_line.again(row)]
        return job_of(row), calls


async def prune(db: Database, before: datetime, most: int = 200) -> list[TrainingJob]:
    """Throw away jobs that ended before; those that were. Raises DatabaseUnavailable."""
    async with db.writing() as session:
        old = [job_of(row) for row in await AnyJobs(session).old(before, most)]
        await AnyJobs(session).remove([job.id for job in old])
    return old


async def _held(session: Session, grip: Grip) -> JobRow:
    row = await AnyJobs(session).held(grip)
    if row is None:
        raise Overtaken
    return row


async def _over(
    session: Session, row: JobRow, settings: Settings, to: JobState, reason: str, now: datetime
) -> list[Call]:
    """It runs no more; others of its owner may come now."""
    row.state, row.reason, row.wish = to.value, reason, ""
    await job_line.leave(session, row)
    calls = await job_line.admit(session, row.tenant, row.owner, settings, now)
    if to in ENDED:
        row.ended_at = now
        row.progress = 1.0 if to is JobState.COMPLETED else row.progress
        await job_line.settle(session, row, settings, now)
    return calls


async def _write(session: Session, row: JobRow, report: Report, settings: Settings, now: datetime) -> None:
    seen = row.seen_at or now
    row.ran_s += min(LONGEST_GAP_S, max(0.0, (now - seen).total_seconds()))
    row.seen_at = now
    row.progress = row.progress if report.progress is None else report.progress
    row.step = row.step if report.step is None else report.step
    lines = [*report.lines, *(Line(Stream.SYSTEM, now, text) for text in report.notes)]
    at = AnyJobs(session)
    await at.log(
        [
            {"job": row.id, "number": number, "run": row.starts, **line._asdict()}
            for number, line in enumerate(lines, row.lines + 1)
        ]
    )
    await at.keep([{"job": row.id, "run": row.starts, **one._asdict()} for one in report.checkpoints])
    if report.checkpoints:
        last = report.checkpoints[-1]
        row.checkpoint, row.checkpoint_step, row.deaths = last.path, last.step, 0
    before, row.lines = row.lines, row.lines + len(lines)
    most = settings.training_log_lines
    if row.lines > most and before // PRUNE_EACH != row.lines // PRUNE_EACH:
        await at.prune_log(row.id, row.lines - most + 1)
