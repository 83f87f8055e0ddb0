"""Training jobs in SQL: rows that services read and change in a transaction of theirs.

What a run writes is fenced: it names the message and the claim by which it has the job, and whoever took the
job since then has other ones.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from gaelp_tasks.db.database import Database
from gaelp_tasks.db.job_rows import CheckpointRow, JobRow, LogRow, job_of
from gaelp_tasks.models.training import CHECKPOINTS, ENDED, Checkpoint, JobLog, JobState, TrainingJob

__all__ = ["AnyJobs", "Candidate", "Grip", "Jobs"]

LINE = 0x6761656C706A  #: PostgreSQL's advisory lock on the line of jobs: "gaelpj" as a number
OVER = [state.value for state in ENDED]
LOG_PIECE = 500  #: lines of one answer at most
#: checkpoints; by step as those are found to go on from, for a name or a time says less
NEWEST_FIRST = (
    CheckpointRow.run.desc(),
    func.coalesce(CheckpointRow.step, -1).desc(),
    CheckpointRow.at.desc(),
    CheckpointRow.path.desc(),
)


class Grip(NamedTuple):
    """By what a run has its job."""

    job_id: int
    task_id: str
    claim: int


class Candidate(NamedTuple):
    """A job whose message may be lost."""

    job_id: int
    task_id: str


class Jobs:
    """The jobs of one tenant; None: of all."""

    def __init__(self, db: Database, tenant: str | None) -> None:
        self._db = db
        self._tenant = tenant

    async def find(self, job_id: int) -> TrainingJob | None:
        """The one of this id."""
        async with self._db.reading() as session:
            row = (await session.scalars(self._mine(job_id))).one_or_none()
            return None if row is None else job_of(row)

    async def listed(
        self,
        *,
        skip: int = 0,
        limit: int = 100,
        state: JobState | None = None,
        agent_id: int | None = None,
    ) -> list[TrainingJob]:
        """The newest first."""
        asked = select(JobRow).order_by(JobRow.id.desc()).offset(skip).limit(limit)
        if self._tenant is not None:
            asked = asked.where(JobRow.tenant == self._tenant)
        if state is not None:
            asked = asked.where(JobRow.state == state.value)
        if agent_id is not None:
            asked = asked.where(JobRow.agent_id == agent_id)
        async with self._db.reading() as session:
            return [job_of(row) for row in await session.scalars(asked)]

    async def counts(self) -> dict[str, int]:
        """How many are in each state that any is in."""
        asked = select(JobRow.state, func.count()).group_by(JobRow.state)
        if self._tenant is not None:
            asked = asked.where(JobRow.tenant == self._tenant)
        async with self._db.reading() as session:
            return {row[0]: row[1] for row in await session.execute(asked)}

    async def logs(self, job_id: int, *, after: int = 0, limit: int = LOG_PIECE) -> list[JobLog]:
        """Lines behind a number, the oldest first; who may see the job is asked before."""
        asked = select(LogRow).where(LogRow.job == job_id, LogRow.number > after).order_by(LogRow.number)
        async with self._db.reading() as session:
            found = await session.scalars(asked.limit(limit))
            return [JobLog(row.number, row.run, row.stream, row.at, row.text) for row in found]

    async def checkpoints(self, job_id: int, *, skip: int = 0, limit: int = CHECKPOINTS) -> list[Checkpoint]:
        """The newest first: of the last run, those of the last step; who may see the job is asked before."""
        asked = select(CheckpointRow).where(CheckpointRow.job == job_id)
        async with self._db.reading() as session:
            found = await session.scalars(asked.order_by(*NEWEST_FIRST).offset(skip).limit(limit))
            return [Checkpoint(row.path, row.size_bytes, row.step, row.at) for row in found]

    async def row(self, session: AsyncSession, job_id: int) -> JobRow | None:
        """To be changed."""
        return (await session.scalars(self._mine(job_id).with_for_update())).one_or_none()

    def _mine(self, job_id: int) -> Select[tuple[JobRow]]:
        asked = select(JobRow).where(JobRow.id == job_id)
        return asked if self._tenant is None else asked.where(JobRow.tenant == self._tenant)


class AnyJobs:
    """What is done with jobs whosever they are, inside a transaction of the caller."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def alone(self) -> None:
        """Nobody else adds to the line of jobs until this transaction ends; SQLite has one writer anyway."""
        if self._session.get_bind().dialect.name == "postgresql":
            await self._session.execute(text(f"SELECT pg_advisory_xact_lock({LINE})"))

    async def queued(self) -> int:
        """How many wait."""
        asked = select(func.count()).where(JobRow.state == JobState.QUEUED.value)
        return int(await self._session.scalar(asked) or 0)

    async def add(self, row: JobRow) -> None:
        """A new one, which then has its id."""
        self._session.add(row)
        await self._session.flush()

    async def held(self, grip: Grip) -> JobRow | None:
        """The job of a run, to be changed; None where somebody else has it, or it does not run any more."""
        asked = select(JobRow).where(
            JobRow.id == grip.job_id,
            JobRow.task_id == grip.task_id,
            JobRow.claim == grip.claim,
            JobRow.state == JobState.RUNNING.value,
        )
        return (await self._session.scalars(asked.with_for_update())).one_or_none()

    async def addressed(self, grip: Grip) -> JobRow | None:
        """The job that a message is for, to be taken by this claim; None where the message is void."""
        asked = select(JobRow).where(
            JobRow.id == grip.job_id, JobRow.task_id == grip.task_id, JobRow.claim < grip.claim
        )
        return (await self._session.scalars(asked.with_for_update())).one_or_none()

    async def unadmitted(self, tenant: str, owner: str, *, skip: int, most: int) -> list[JobRow]:
        """An owner's jobs that wait for its quota, the most urgent first."""
        asked = (
            select(JobRow)
            .where(
                JobRow.state == JobState.QUEUED.value,
                JobRow.tenant == tenant,
                JobRow.owner == owner,
                JobRow.admitted_at.is_(None),
            )
            .order_by(JobRow.priority.desc(), JobRow.id)
            .offset(skip)
            .limit(most)
        )
        # one that somebody changes right now is passed over: who does lets in what fits afterwards
        return list(await self._session.scalars(asked.with_for_update(skip_locked=True)))

    async def of_agent(self, agent_id: int) -> list[JobRow]:
        """Those of an agent that have not ended, to be changed."""
        asked = select(JobRow).where(JobRow.agent_id == agent_id, JobRow.state.not_in(OVER))
        return list(await self._session.scalars(asked.order_by(JobRow.id).with_for_update()))

    async def waiting_owners(self) -> list[tuple[str, str]]:
        """Tenant and name of those whose jobs wait for a quota."""
        asked = (
            select(JobRow.tenant, JobRow.owner)
            .where(JobRow.state == JobState.QUEUED.value, JobRow.admitted_at.is_(None))
            .distinct()
        )
        return [(tenant, owner) for tenant, owner in (await self._session.execute(asked)).all()]

    async def published(self, task_ids: Sequence[str], now: datetime) -> None:
        """Redis has taken these messages."""
        took = update(JobRow).where(JobRow.task_id.in_(task_ids)).values(published_at=now)
        await self._session.execute(took)

    async def unseen(self, before: datetime, most: int) -> list[Candidate]:
        """Admitted jobs that nobody has seen since: their messages may be lost."""
        asked = select(JobRow.id, JobRow.task_id).where(_unseen(before))
        found = await self._session.execute(asked.order_by(JobRow.priority.desc(), JobRow.id).limit(most))
        return [Candidate(*row) for row in found]

    async def still_unseen(self, lost: Sequence[Candidate], before: datetime) -> list[JobRow]:
        """Those of them of which that still holds, the most urgent first, to be changed."""
        asked = select(JobRow).where(_unseen(before), JobRow.task_id.in_([one.task_id for one in lost]))
        in_order = asked.order_by(JobRow.priority.desc(), JobRow.id)
        return list(await self._session.scalars(in_order.with_for_update(skip_locked=True)))

    async def log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add lines to logs."""
        if rows:
            await self._session.execute(insert(LogRow), rows)

    async def keep(self, rows: Sequence[dict[str, Any]]) -> None:
        """Note checkpoints of one job, of which the newest stay; one that is there is replaced."""
        if not rows:
            return
        of = postgresql.insert if self._session.get_bind().dialect.name == "postgresql" else sqlite.insert
        new = of(CheckpointRow)
        changed = {name: new.excluded[name] for name in ("size_bytes", "step", "run", "at")}
        await self._session.execute(
            new.on_conflict_do_update(index_elements=["job", "path"], set_=changed), list(rows)
        )
        of_job = CheckpointRow.job == rows[0]["job"]
        kept = select(CheckpointRow.path).where(of_job).order_by(*NEWEST_FIRST).limit(CHECKPOINTS)
        await self._session.execute(delete(CheckpointRow).where(of_job, CheckpointRow.path.not_in(kept)))

    async def prune_log(self, job_id: int, below: int) -> None:
        """Throw away the lines below a number."""
        await self._session.execute(delete(LogRow).where(LogRow.job == job_id, LogRow.number < below))

    async def old(self, before: datetime, most: int) -> list[JobRow]:
        """Jobs that ended before."""
        asked = select(JobRow).where(JobRow.state.in_(OVER), JobRow.ended_at < before).limit(most)
        return list(await self._session.scalars(asked.with_for_update(skip_locked=True)))

    async def remove(self, ids: Sequence[int]) -> None:
        """With their logs and checkpoints, by the foreign keys."""
        await self._session.execute(delete(JobRow).where(JobRow.id.in_(ids)))


def _unseen(before: datetime) -> ColumnElement[bool]:
    queued = (JobRow.state == JobState.QUEUED.value) & (JobRow.admitted_at < before)
    queued &= JobRow.published_at.is_(None) | (JobRow.published_at < before)
    return queued | ((JobRow.state == JobState.RUNNING.value) & (JobRow.seen_at < before))
