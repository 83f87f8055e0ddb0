"""What has ended, for good: one row for each invocation; with its texts only where a worker told them."""

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Index, Select, String, Text, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.elements import ColumnElement

from gaelp_tasks.db.base import Base, UtcTime
from gaelp_tasks.db.database import Database

__all__ = ["ANY", "History", "InvocationRow", "Which"]

logger = logging.getLogger(__name__)

AT_ONCE = 500  #: rows in one transaction, so that no writer keeps the others out for long
NAME = 255  #: characters of an id or a name


class InvocationRow(Base):
    """One invocation as it ended; the newest end counts where an id was asked for again."""

    __tablename__ = "invocations"
    __table_args__ = (
        Index("ix_invocations_finished_at", "finished_at"),
        Index("ix_invocations_tenant_finished_at", "tenant", "finished_at"),
    )

    id: Mapped[str] = mapped_column(String(NAME), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(NAME))  #: '' where none was named
    task: Mapped[str] = mapped_column(String(NAME))
    state: Mapped[str] = mapped_column(String(16))  #: done, cut, failed
    stop_reason: Mapped[str] = mapped_column(String(16))  #: '' where it failed
    error: Mapped[str] = mapped_column(Text)  #: class and sentence; the class alone where it is not ours
    tier: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    agent: Mapped[str] = mapped_column(String(NAME))  #: '' for embeddings
    model: Mapped[str] = mapped_column(String(NAME))  #: as asked for where it reached none
    node: Mapped[str] = mapped_column(Text)  #: '' where it reached none
    worker: Mapped[str] = mapped_column(String(NAME))
    claims: Mapped[int]  #: how often it was started
    attempts: Mapped[int]  #: those that counted
    queued_s: Mapped[float | None]  #: None where it could not be seen, as for the next two
    load_s: Mapped[float | None]
    first_token_s: Mapped[float | None]
    total_s: Mapped[float | None]  #: of the last run; None where it failed
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    prompt: Mapped[str | None] = mapped_column(Text)  #: None: GAELP_HISTORY_TEXT_BYTES was 0
    text: Mapped[str | None] = mapped_column(Text)
    finished_at: Mapped[datetime] = mapped_column(UtcTime)  #: by Redis' clock

    def facts(self) -> dict[str, Any]:
        """Everything but the texts, by the names of the columns."""
        return {name: getattr(self, name) for name in COLUMNS if name not in TEXTS}


COLUMNS = tuple(InvocationRow.__table__.columns.keys())
TEXTS = frozenset({"prompt", "text"})


class Which(NamedTuple):
    """Those that are meant; '' and None stand for any."""

    tier: str = ""
    model: str = ""
    agent: str = ""
    state: str = ""
    since: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """In SQL."""
        named = ("tier", "model", "agent", "state")
        found = [getattr(InvocationRow, name) == getattr(self, name) for name in named if getattr(self, name)]
        return found if self.since is None else [*found, InvocationRow.finished_at >= self.since]


ANY = Which()


class History:
    """The invocations of one tenant that have ended; of all tenants, for who runs the cluster, with None."""

    def __init__(self, db: Database, tenant: str | None) -> None:
        self._db = db
        self._tenant = tenant

    async def add(self, ended: Iterable[Mapping[str, Any]]) -> None:
        """Keep these, of whichever tenants; the same one again changes nothing. Raises DatabaseUnavailable.

        Each has all columns by name. What ended before the row that is there is older news.
        """
        rows = list({row["id"]: dict(row) for row in sorted(ended, key=_finished_at)}.values())
        if not rows:
            return
        try:
            await self._insert(rows)
        except StatementError:  # one that the database refuses must not keep the others out for ever
            for row in rows:
                try:
                    await self._insert([row])
                except StatementError:
                    logger.exception("The history does not take the end of %s.", row["id"])

    async def _insert(self, rows: list[dict[str, Any]]) -> None:
        async with self._db.writing() as session:
            insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
            made: Any = insert(InvocationRow)
            newer = made.excluded.finished_at >= InvocationRow.finished_at
            columns = {name: made.excluded[name] for name in COLUMNS if name != "id"}
            statement = made.on_conflict_do_update(index_elements=["id"], set_=columns, where=newer)
            await session.execute(statement, rows)

    async def listed(self, which: Which = ANY, *, most: int, skip: int = 0) -> list[InvocationRow]:
        """Up to `most` that are meant, the newest first, after `skip` of them. Raises DatabaseUnavailable."""
        rows = self._of_tenant(select(InvocationRow)).where(*which.conditions())
        newest = rows.order_by(InvocationRow.finished_at.desc(), InvocationRow.id.desc())
        async with self._db.reading() as session:
            return list(await session.scalars(newest.offset(skip).limit(most)))

    async def count(self, which: Which = ANY) -> int:
        """How many are meant. Raises DatabaseUnavailable."""
        counted = self._of_tenant(select(func.count()).select_from(InvocationRow)).where(*which.conditions())
        async with self._db.reading() as session:
            return int(await session.scalar(counted) or 0)

    async def find(self, beginning: str, *, most: int = 2) -> list[InvocationRow]:
        """Those whose id begins so, the one of just that id alone. Raises DatabaseUnavailable."""
        rows = self._of_tenant(select(InvocationRow))
        likely = rows.where(InvocationRow.id.startswith(beginning, autoescape=True))
        async with self._db.reading() as session:
            exact = await session.scalar(rows.where(InvocationRow.id == beginning))
            return [exact] if exact else list(await session.scalars(likely.limit(most)))

    async def purge(self, ids: Iterable[str]) -> int:
        """Throw these away; how many were there. Raises DatabaseUnavailable."""
        names, thrown = list(dict.fromkeys(ids)), 0
        for at in range(0, len(names), AT_ONCE):
            thrown += await self._delete(InvocationRow.id.in_(names[at : at + AT_ONCE]))
        return thrown

    async def prune(self, before: datetime) -> int:
        """Throw away all that ended before; how many these were. Raises DatabaseUnavailable."""
        thrown = 0
        while some := await self._delete(
            InvocationRow.id.in_(
                self._of_tenant(select(InvocationRow.id))
                .where(InvocationRow.finished_at < before)
                .limit(AT_ONCE)
            )
        ):
            thrown += some
        return thrown

    async def _delete(self, these: ColumnElement[bool]) -> int:
        statement = delete(InvocationRow).where(these)
        if self._tenant is not None:
            statement = statement.where(InvocationRow.tenant == self._tenant)
        async with self._db.writing() as session:
            done: Any = await session.execute(statement, execution_options={"synchronize_session": False})
            return int(done.rowcount)

    def _of_tenant(self, rows: Select[Any]) -> Select[Any]:
        return rows if self._tenant is None else rows.where(InvocationRow.tenant == self._tenant)


def _finished_at(row: Mapping[str, Any]) -> datetime:
    at: datetime = row["finished_at"]
    return at
