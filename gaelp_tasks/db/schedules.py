"""Schedules in SQL: what people ask for, and how far beat has come with each."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

from sqlalchemy import BigInteger, Boolean, Index, Select, String, UniqueConstraint, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, JsonText, UtcTime
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.idempotency import note_made
from gaelp_tasks.due import Drop, Fire, Hold, Standing, next_due
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.schedule import InvalidSchedule, Schedule

__all__ = ["Kept", "ScheduleRow", "Schedules", "Timetable"]

#: a change of these changes what is due; a due time that nobody has decided about yet does not outlive it
TIMING = ("cron", "zone", "interval_s", "at", "start", "end", "windows")
KEPT_APART = {"name", "paused"}  #: in columns of their own
LOOK_AGAIN = timedelta(seconds=2)  #: at what waits; those behind it must have their turn
UNREAD = timedelta(minutes=1)  #: the same for what this release cannot read


class ScheduleRow(Base):
    """One schedule of a tenant."""

    __tablename__ = "schedules"
    __table_args__ = (UniqueConstraint("tenant", "name"), Index(None, "paused", "next_due"))

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    owner: Mapped[str] = mapped_column(String(200), server_default="")  #: '' where nobody is known
    name: Mapped[str] = mapped_column(String(100))
    spec: Mapped[dict[str, Any]] = mapped_column(JsonText)
    paused: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    decided_until: Mapped[datetime] = mapped_column(UtcTime)
    waiting_since: Mapped[datetime | None] = mapped_column(UtcTime)
    next_due: Mapped[datetime | None] = mapped_column(UtcTime)  #: when beat looks next; None: never again
    last_due: Mapped[datetime | None] = mapped_column(UtcTime)
    last_task: Mapped[str | None] = mapped_column(String(255))
    fence: Mapped[int] = mapped_column(BigInteger)  #: of the beat that wrote last


class Kept(NamedTuple):
    """A schedule as it stands."""

    id: UUID
    tenant: str
    schedule: Schedule
    standing: Standing
    created_at: datetime
    next_due: datetime | None  #: None where it never comes due again
    last_due: datetime | None  #: of the run that was published last; None before that
    last_task: str | None  #: the id of that run, or of one that was asked for at once
    owner: str = ""  #: who has made it over HTTP; '' where nobody is known

    def run_id(self, due: datetime) -> str:
        """The task id of the run of a due time: the same for everybody who publishes it."""
        return str(uuid5(self.id, due.isoformat()))


def _kept(row: ScheduleRow) -> Kept:
    """Raises InvalidSchedule where another release wrote what this one does not know."""
    try:
        schedule = Schedule.parse({**row.spec, "name": row.name, "paused": row.paused})
    except InvalidSchedule as error:
        whose = f" of {row.tenant!r}" if row.tenant else ""
        raise InvalidSchedule(f"Schedule {row.name!r}{whose} is of another release: {error}") from None
    return Kept(
        id=UUID(row.id),
        tenant=row.tenant,
        schedule=schedule,
        standing=Standing(row.decided_until, row.waiting_since),
        created_at=row.created_at,
        next_due=row.next_due,
        last_due=row.last_due,
        last_task=row.last_task,
        owner=row.owner,
    )


def _spec(schedule: Schedule) -> dict[str, Any]:
    spec = {name: value for name, value in schedule.wire().items() if name not in KEPT_APART}
    if _holds_nul(spec):
        raise InvalidSchedule("No text of a schedule may hold the character NUL.")  # PostgreSQL has no place
    return spec


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_holds_nul, inner))


def _first_due(schedule: Schedule, now: datetime) -> datetime:
    due = next_due(schedule, now)
    if due is None:
        raise InvalidSchedule("Nothing is ever due: its times, start, end and windows leave none from now.")
    return due


class Schedules:
    """The schedules of one tenant."""

    def __init__(self, db: Database, tenant: str) -> None:
        self._db = db
        self._tenant = tenant

    async def add(self, schedule: Schedule, now: datetime, *, owner: str = "") -> Kept:
        """Keep a new one. Raises InvalidSchedule where its name is taken, or it never comes due."""
        if len(self._tenant) > LONGEST_TENANT:
            raise InvalidSchedule(f"tenant: no name is longer than {LONGEST_TENANT} characters.")
        row = ScheduleRow(
            id=str(uuid4()),
            tenant=self._tenant,
            owner=owner,
            name=schedule.name,
            spec=_spec(schedule),
            paused=schedule.paused,
            created_at=now,
            decided_until=now,
            waiting_since=None,
            next_due=_first_due(schedule, now),
            fence=0,
        )
        try:
            async with self._db.writing() as session:
                session.add(row)
                note_made(session, f"schedules/{schedule.name}")
        except IntegrityError:
            raise InvalidSchedule(
                f"There is a schedule {schedule.name!r} already: edit it, or take another name."
            ) from None
        return _kept(row)

    async def listed(self) -> list[Kept]:
        """All of them by name."""
        mine = select(ScheduleRow).where(ScheduleRow.tenant == self._tenant).order_by(ScheduleRow.name)
        async with self._db.reading() as session:
            return [_kept(row) for row in await session.scalars(mine)]

    async def find(self, name: str) -> Kept | None:
        """The one of this name."""
        async with self._db.reading() as session:
            row = (await session.scalars(self._mine(name))).one_or_none()
        return None if row is None else _kept(row)

    async def change(self, name: str, schedule: Schedule, now: datetime) -> Kept | None:
        """Put `schedule` in its place, None where there is none of this name.

        Raises InvalidSchedule where its new name is taken, or it never comes due. Where that changes its
        times they count from now; what waited for its turn is dropped then.
        """
        try:
            async with self._db.writing() as session:
                row = await self._row(session, name)
                if row is None:
                    return None
                before = _kept(row).schedule
                row.name, row.spec = schedule.name, _spec(schedule)
                if any(getattr(before, field) != getattr(schedule, field) for field in TIMING):
                    row.next_due = _first_due(schedule, now)
                    row.decided_until, row.waiting_since = max(row.decided_until, now), None
                if before.paused != schedule.paused:
                    self._pause(row, schedule, now)
        except IntegrityError:
            raise InvalidSchedule(f"There is a schedule {schedule.name!r} already.") from None
        return _kept(row)

    async def pause(self, name: str, now: datetime, *, paused: bool) -> Kept | None:
        """Have nothing more of it published, or go on; None where there is none of this name.

        What was due in between is not made up for.
        """
        async with self._db.writing() as session:
            row = await self._row(session, name)
            if row is None:
                return None
            if row.paused != paused:
                self._pause(row, _kept(row).schedule.model_copy(update={"paused": paused}), now)
        return _kept(row)

    def _pause(self, row: ScheduleRow, schedule: Schedule, now: datetime) -> None:
        row.paused = schedule.paused
        row.waiting_since = None
        if not schedule.paused:
            row.decided_until = max(row.decided_until, now)
            row.next_due = next_due(schedule, row.decided_until)

    async def remove(self, name: str) -> UUID | None:
        """Forget it; its id, None where there is none of this name. What it has published goes on."""
        async with self._db.writing() as session:
            row = await self._row(session, name)
            if row is None:
                return None
            await session.delete(row)
            return UUID(row.id)

    async def ran(self, name: str, task_id: str) -> None:
        """A run was published at once, beside those that are due."""
        async with self._db.writing() as session:
            row = await self._row(session, name)
            if row is not None:
                row.last_task = task_id

    def _mine(self, name: str) -> Select[tuple[ScheduleRow]]:
        return select(ScheduleRow).where(ScheduleRow.tenant == self._tenant, ScheduleRow.name == name)

    async def _row(self, session: AsyncSession, name: str) -> ScheduleRow | None:
        return (await session.scalars(self._mine(name).with_for_update())).one_or_none()


class Due(NamedTuple):
    """What beat has to look at."""

    kept: Sequence[Kept]
    unread: Sequence[str]  #: a sentence on each that this release cannot read
    next_at: datetime | None  #: when the next one comes due after that; None: none is there


class Timetable:
    """The schedules of all tenants, for beat alone: it serves them in the order in which they come due."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def due(self, now: datetime, most: int) -> Due:
        """At most so many of those that are due."""
        active = ScheduleRow.paused.is_(False)
        now_due = select(ScheduleRow).where(active, ScheduleRow.next_due <= now)
        later = select(func.min(ScheduleRow.next_due)).where(active, ScheduleRow.next_due > now)
        kept: list[Kept] = []
        unread: dict[str, str] = {}
        async with self._db.reading() as session:
            for row in await session.scalars(now_due.order_by(ScheduleRow.next_due).limit(most)):
                try:
                    kept.append(_kept(row))
                except InvalidSchedule as error:
                    unread[row.id] = str(error)
            next_at = await session.scalar(later)
        if unread:
            async with self._db.writing() as session:
                ours = update(ScheduleRow).where(ScheduleRow.id.in_(unread))
                await session.execute(ours.values(next_due=now + UNREAD))
        return Due(kept, list(unread.values()), next_at)

    async def note(self, seen: Kept, decided: Fire | Hold | Drop, now: datetime, fence: int) -> bool:
        """Write down what was decided; False where somebody else has decided meanwhile, or deposed us.

        An edit that came in between is kept: what is due next is counted by it; where another release has
        made it, that is found out at the next look.
        """
        mine = select(ScheduleRow).where(
            ScheduleRow.tenant == seen.tenant,
            ScheduleRow.id == str(seen.id),
            ScheduleRow.decided_until == seen.standing.until,
            ScheduleRow.fence <= fence,
        )
        async with self._db.writing() as session:
            # a deposed beat that stands still in the middle of this must not keep us from the other rows
            row = (await session.scalars(mine.with_for_update(skip_locked=True))).one_or_none()
            if row is None:
                return False
            row.fence = fence
            if isinstance(decided, Hold):
                row.waiting_since, row.next_due = decided.since, now + LOOK_AGAIN
                return True
            if isinstance(decided, Fire):
                row.decided_until = row.last_due = decided.due
                row.last_task = seen.run_id(decided.due)
            else:
                row.decided_until = decided.until
            row.waiting_since = None
            try:
                row.next_due = next_due(_kept(row).schedule, row.decided_until)
            except InvalidSchedule:
                row.next_due = now + UNREAD
            return True
