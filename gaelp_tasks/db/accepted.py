"""Invocations accepted over HTTP in SQL: the outbox that is published from, and what has become of them.

A row that is open is looked at again at its `next_at`; who takes it to do so puts that off, which is a lease:
should he die, somebody else takes it then.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    BigInteger,
    Index,
    Integer,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.elements import ColumnElement

from gaelp_tasks.db.base import Base, UtcTime
from gaelp_tasks.db.batch_rows import storable
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.models.acceptance import OPEN, Acceptance, End, Standing
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.caller import LONGEST_USER

__all__ = ["ANY", "Accepted", "AcceptedRow", "Outbox", "Which"]

NAME = 255  #: characters of a name
AT_ONCE = 500  #: rows of one statement or transaction; databases bound what one may name
IS_OPEN = text("standing IN ('accepted', 'published')")  #: as STILL_OPEN


class AcceptedRow(Base):
    """One accepted invocation; the long texts are last, so that SQLite need not read them for the rest."""

    __tablename__ = "accepted"
    __table_args__ = (
        Index("ix_accepted_tenant_key", "tenant", "key"),
        # few, however many are kept: those that the relay looks at
        Index("ix_accepted_open", "next_at", sqlite_where=IS_OPEN, postgresql_where=IS_OPEN),
        Index("ix_accepted_ended_at", "ended_at"),
    )

    key: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    owner: Mapped[str] = mapped_column(String(LONGEST_USER))
    standing: Mapped[str] = mapped_column(String(16))
    next_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: when it is looked at; None: it is over
    agent_id: Mapped[int | None] = mapped_column(BigInteger)
    budget_micro: Mapped[int | None] = mapped_column(BigInteger)
    agent: Mapped[str] = mapped_column(String(NAME))
    model: Mapped[str] = mapped_column(String(NAME))
    tier: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    published_at: Mapped[datetime | None] = mapped_column(UtcTime)
    publications: Mapped[int]
    life: Mapped[str] = mapped_column(String(64))
    cancelled_at: Mapped[datetime | None] = mapped_column(UtcTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)
    stop_reason: Mapped[str] = mapped_column(String(16))
    error: Mapped[str] = mapped_column(Text)
    asked: Mapped[str] = mapped_column(Text)
    result: Mapped[str] = mapped_column(Text)


ROWS = cast(Table, AcceptedRow.__table__)
FIELDS = Acceptance._fields
WHOLE = [ROWS.c[name] for name in FIELDS]
BRIEF = [ROWS.c[name] for name in FIELDS if name not in {"asked", "result"}]  #: for lists
ONE = select(*WHOLE).where(ROWS.c.id == bindparam("id"))
ONE_OF = ONE.where(ROWS.c.tenant == bindparam("tenant"))
#: written out: for a parameter neither database would take the index of what is open
STILL_OPEN = ROWS.c.standing.in_([literal_column(f"'{standing}'") for standing in sorted(OPEN)])


class Which(NamedTuple):
    """Those that are meant; '' and None stand for any."""

    standing: str = ""
    tier: str = ""
    agent: str = ""
    model: str = ""
    agent_id: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """In SQL."""
        return [ROWS.c[name] == value for name, value in self._asdict().items() if value not in ("", None)]


ANY = Which()


def _accepted(row: Any) -> Acceptance:
    given: dict[str, Any] = {name: getattr(row, name, "") for name in FIELDS}  # lists leave texts out
    return Acceptance(**{**given, "standing": Standing(row.standing)})


class Accepted:
    """Those of one tenant; of all tenants with None. Methods raise DatabaseUnavailable."""

    def __init__(self, db: Database, tenant: str | None) -> None:
        self._db = db
        self._tenant = tenant

    async def find(self, invocation_id: str) -> Acceptance | None:
        """The one of this id."""
        if self._tenant is None:
            rows = await self._db.ask(ONE, {"id": invocation_id})
        else:
            rows = await self._db.ask(ONE_OF, {"id": invocation_id, "tenant": self._tenant})
        return _accepted(rows[0]) if rows else None

    async def listed(self, which: Which = ANY, *, most: int, skip: int = 0) -> list[Acceptance]:
        """Up to `most` of them without their texts, the newest first, after `skip`."""
        asked = select(*BRIEF).where(*which.conditions()).order_by(ROWS.c.key.desc())
        if self._tenant is not None:
            asked = asked.where(ROWS.c.tenant == self._tenant)
        async with self._db.reading() as session:
            return [_accepted(row) for row in await session.execute(asked.offset(skip).limit(most))]

    async def cancel(self, invocation_id: str, now: datetime) -> Acceptance | None:
        """Note that it shall be cancelled; the relay looks at it at once. None where there is none."""
        wished = {"cancelled_at": func.coalesce(ROWS.c.cancelled_at, now), "next_at": now}
        async with self._db.writing() as session:
            await session.execute(self._mine(update(ROWS), invocation_id).where(STILL_OPEN).values(wished))
            row = (await session.execute(self._mine(select(*WHOLE), invocation_id))).one_or_none()
        return None if row is None else _accepted(row)

    async def purge(self, ids: Collection[str]) -> tuple[set[str], set[str]]:
        """Throw those of these away that are over; the ids of those, and of those that are not over."""
        gone: set[str] = set()
        open_ones: set[str] = set()
        names = list(ids)
        for at in range(0, len(names), AT_ONCE):
            theirs: ColumnElement[bool] = ROWS.c.id.in_(names[at : at + AT_ONCE])
            if self._tenant is not None:
                theirs &= ROWS.c.tenant == self._tenant
            async with self._db.writing() as session:
                rows = await session.execute(
                    select(ROWS.c.id, ROWS.c.next_at).where(theirs).with_for_update()
                )
                over = {row.id: row.next_at is None for row in rows}
                found = {name for name, is_over in over.items() if is_over}
                gone |= found
                open_ones |= over.keys() - found
                await session.execute(delete(ROWS).where(ROWS.c.id.in_(found)))
        return gone, open_ones

    def _mine(self, statement: Any, invocation_id: str) -> Any:
        found = statement.where(ROWS.c.id == invocation_id)
        return found if self._tenant is None else found.where(ROWS.c.tenant == self._tenant)


class Outbox:
    """What is kept of all tenants, for who accepts and who relays.

    Methods with a `session` work inside the caller's transaction, which he opens by `writing()`.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.writing = db.writing

    # --- for who accepts ---

    async def waiting(self, session: Session) -> int:
        """How many are open."""
        return int(await session.scalar(select(func.count()).select_from(ROWS).where(STILL_OPEN)) or 0)

    async def known(self, session: Session, ids: Collection[str]) -> dict[str, Acceptance]:
        """Those of these ids that are there."""
        if not ids:
            return {}
        rows = await session.execute(select(*WHOLE).where(ROWS.c.id.in_(ids)))
        return {row.id: _accepted(row) for row in rows}

    async def add(self, session: Session, rows: Sequence[Acceptance], next_at: datetime) -> None:
        """Keep these, whose ids nobody else gives."""
        if rows:
            await session.execute(insert(ROWS), [_columns(row, next_at) for row in rows])

    async def add_unless_there(self, session: Session, row: Acceptance, next_at: datetime) -> bool:
        """Keep one whose id somebody else may give at the same moment; False where he was first."""
        made = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        added: Any = await session.execute(
            made(ROWS).values(_columns(row, next_at)).on_conflict_do_nothing(index_elements=["id"])
        )
        return bool(added.rowcount)

    async def change(self, session: Session, row: Acceptance) -> None:
        """What it asks is otherwise than it was kept just now."""
        given = {"asked": row.asked, "agent": row.agent, "model": row.model, "tier": row.tier}
        await session.execute(update(ROWS).where(ROWS.c.id == row.id).values(given))

    async def published(
        self, session: Session, ids: Collection[str], life: str, *, now: datetime, next_at: datetime
    ) -> None:
        """These are in the Redis of this life; what is over already stays so."""
        names = list(ids)
        given = {
            "standing": Standing.PUBLISHED.value,
            "published_at": now,
            "publications": ROWS.c.publications + 1,
            "life": life,
            "next_at": next_at,
        }
        for at in range(0, len(names), AT_ONCE):
            these = ROWS.c.id.in_(names[at : at + AT_ONCE]) & STILL_OPEN
            await session.execute(update(ROWS).where(these).values(given))

    # --- for who relays ---

    async def is_due(self, now: datetime) -> bool:
        """Whether one is to be looked at."""
        asked = select(ROWS.c.key).where(STILL_OPEN, ROWS.c.next_at <= now).limit(1)
        async with self._db.reading() as session:
            return await session.scalar(asked) is not None

    async def take(self, now: datetime, until: datetime, *, most: int = AT_ONCE) -> list[Acceptance]:
        """Those that are due, which nobody else takes before `until`."""
        due = select(*WHOLE, ROWS.c.key).where(STILL_OPEN, ROWS.c.next_at <= now).order_by(ROWS.c.next_at)
        async with self._db.writing() as session:
            rows = (await session.execute(due.limit(most).with_for_update(skip_locked=True))).all()
            if rows:
                theirs = ROWS.c.key.in_([row.key for row in rows])
                await session.execute(update(ROWS).where(theirs).values(next_at=until))
        return [_accepted(row) for row in rows]

    async def put_off(self, times: Mapping[str, datetime]) -> None:
        """Look at these again at these times."""
        by_time: dict[datetime, list[str]] = {}
        for name, at in times.items():
            by_time.setdefault(at, []).append(name)
        if by_time:
            async with self._db.writing() as session:
                for at, names in by_time.items():
                    these = ROWS.c.id.in_(names) & STILL_OPEN
                    await session.execute(update(ROWS).where(these).values(next_at=at))

    async def open_of(self, ids: Collection[str]) -> set[str]:
        """Those of these that are kept here and not over."""
        found: set[str] = set()
        names = list(ids)
        async with self._db.reading() as session:
            for at in range(0, len(names), AT_ONCE):
                asked = select(ROWS.c.id).where(ROWS.c.id.in_(names[at : at + AT_ONCE]), STILL_OPEN)
                found.update(await session.scalars(asked))
        return found

    async def in_redis(self, *, before: datetime, life: str) -> list[str]:
        """Those that were published before, or to a Redis of another life, and are not over."""
        asked = select(ROWS.c.id).where(STILL_OPEN, _is_old(before, life))
        async with self._db.reading() as session:
            return list(await session.scalars(asked))

    async def lost(self, ids: Collection[str], now: datetime, *, before: datetime, life: str) -> int:
        """Redis has lost these of `in_redis`: they are to be published again; how many.

        Those that another relay has published again since are left out.
        """
        names, count = list(ids), 0
        for at in range(0, len(names), AT_ONCE):
            theirs = ROWS.c.id.in_(names[at : at + AT_ONCE])
            there = theirs & _is_old(before, life)
            again = {"standing": Standing.ACCEPTED.value, "next_at": now}
            async with self._db.writing() as session:
                done: Any = await session.execute(update(ROWS).where(there).values(again))
                count += done.rowcount
        return count

    async def lock(self, session: Session, ids: Collection[str]) -> dict[str, Acceptance]:
        """Those of these that are not over, in the order of their ids; nobody else ends them meanwhile."""
        found: dict[str, Acceptance] = {}
        names = sorted(ids)
        for at in range(0, len(names), AT_ONCE):
            asked = select(*BRIEF).where(ROWS.c.id.in_(names[at : at + AT_ONCE]), STILL_OPEN)
            rows = await session.execute(asked.order_by(ROWS.c.id).with_for_update())
            found |= {row.id: _accepted(row) for row in rows}
        return found

    async def end(self, session: Session, end: End, now: datetime, *, result: str = "") -> bool:
        """Note how one has ended, and forget what it asked; False where it was over already."""
        given = {
            "standing": end.standing.value,
            "stop_reason": end.stop_reason[:16],
            "error": storable(end.error),
            "result": result,
            "ended_at": now,
            "next_at": None,
            "asked": "",
        }
        done: Any = await session.execute(update(ROWS).where(ROWS.c.id == end.id, STILL_OPEN).values(given))
        return bool(done.rowcount)

    async def prune(self, before: datetime) -> int:
        """Throw away what was over before; how many these were."""
        thrown = 0
        old = select(ROWS.c.key).where(ROWS.c.ended_at < before).limit(AT_ONCE)
        while True:
            async with self._db.writing() as session:
                keys = (await session.scalars(old)).all()
                if not keys:
                    return thrown
                await session.execute(delete(ROWS).where(ROWS.c.key.in_(keys)))
                thrown += len(keys)


def _is_old(before: datetime, life: str) -> ColumnElement[bool]:
    old = (ROWS.c.published_at < before) | (ROWS.c.life != life)
    return old & (ROWS.c.standing == Standing.PUBLISHED.value)


def _columns(row: Acceptance, next_at: datetime) -> dict[str, Any]:
    plain = {"standing": row.standing.value, "agent": storable(row.agent), "model": storable(row.model)}
    return {**row._asdict(), **plain, "next_at": next_at}
