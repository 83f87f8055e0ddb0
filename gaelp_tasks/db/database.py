"""The only door to the database: connections, transactions, migrations, and its errors in our words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Executable, Row, event, exc, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.util import greenlet_spawn

from gaelp_tasks.db import address, migrations, sqlite
from gaelp_tasks.errors import DatabaseUnavailable, SettingsError
from gaelp_tasks.settings import masked

__all__ = ["Database", "Session", "before_commit"]

Session = AsyncSession  #: what services hand on, who do not know SQLAlchemy

#: what each transaction of a request does at its end, so that it is known whether the request was done
before_commit: ContextVar[Callable[[AsyncSession], Awaitable[None]] | None] = ContextVar(
    "gaelp_before_commit", default=None
)

ANSWER_S = 30.0  #: a lock, a connection or an answer that takes longer is an error
MIGRATING = 0x6761656C70  #: PostgreSQL's advisory lock while tables are changed: "gaelp" as a number
#: what the caller has asked wrongly; any other error is the database's own
ASKED_WRONGLY = (exc.IntegrityError, exc.DataError, exc.ProgrammingError, exc.NotSupportedError)
WRONG_CLASSES = ("0A", "21", "22", "23", "42")  #: the same as PostgreSQL's SQLSTATEs begin


class Database:
    """SQLite or PostgreSQL behind one address; connects at first use, and belongs to one event loop.

    `ask` is the quick way for what is asked with every request. What is read to be changed is read in one
    `writing()`. SQLite lets one writer in at a time, so nothing but the session is awaited there; PostgreSQL
    lets in many, at READ COMMITTED, so rows are locked there by `with_for_update()`, which SQLite ignores.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S) -> None:
        """`answer_s` bounds each wait.

        Raises SettingsError where the address is bad or its driver is not installed.
        """
        try:
            address.check(url)
        except ValueError as error:
            raise SettingsError(f"GAELP_DATABASE_URL: {error}.") from None
        self.place = masked(url)  #: the address as people may see it
        self._answer_s = answer_s
        #: where writers of this process wait, and the first of them for other processes; not for PostgreSQL
        self._line: asyncio.Lock | None = None
        if address.is_postgres(url):
            self._engine = _postgres(url, answer_s)
            # one statement needs no BEGIN and ROLLBACK, which are round trips
            self._asking = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        else:
            self._engine, self._line = sqlite.engine(address.sqlite_file(url), answer_s), asyncio.Lock()
            self._asking = self._engine
        event.listen(self._engine.sync_engine, "handle_error", self._in_our_words)
        self._writing = self._engine.execution_options(**sqlite.WRITING)
        self._readers = async_sessionmaker(self._engine, expire_on_commit=False)
        self._writers = async_sessionmaker(self._writing, expire_on_commit=False)

    def reading(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session whose changes are not kept. Raises DatabaseUnavailable."""
        return self._session(self._readers())

    async def ask(self, statement: Executable, given: Mapping[str, Any] | None = None) -> list[Row[Any]]:
        """The rows of one statement; where that is made once, with `bindparam`, for a quarter of the cost.

        Raises DatabaseUnavailable.
        """
        try:
            return await greenlet_spawn(self._ask, statement, given)
        except exc.TimeoutError as error:
            raise self._unavailable(error) from None

    def _ask(self, statement: Executable, given: Mapping[str, Any] | None) -> list[Row[Any]]:
        with self._asking.sync_engine.connect() as connection:
            return list(connection.execute(statement, given))

    @asynccontextmanager
    async def writing(self, *, aside: bool = False) -> AsyncIterator[AsyncSession]:
        """A session of one transaction: committed at its end, rolled back by an exception.

        `aside`: it is no part of what a request does, so `before_commit` is not called. Raises
        DatabaseUnavailable; sqlalchemy.exc.IntegrityError where a constraint forbids it.
        """
        async with self._turn(), self._session(self._writers()) as session:
            yield session
            last = None if aside else before_commit.get()
            if last is not None:
                await last(session)
            await session.commit()

    @asynccontextmanager
    async def _session(self, session: AsyncSession) -> AsyncIterator[AsyncSession]:
        try:
            async with session:
                yield session
        except exc.TimeoutError as error:
            raise self._unavailable(error) from None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._line is None:
            yield
            return
        try:
            async with asyncio.timeout(self._answer_s):
                await self._line.acquire()
        except TimeoutError:
            raise self._unavailable(TimeoutError("others are writing")) from None
        try:
            yield
        finally:
            self._line.release()

    async def migrate(self) -> None:
        """Bring the tables to the newest revision; several processes at once are safe.

        Raises DatabaseUnavailable, also where a newer release has been here.
        """
        if await self.revision() != migrations.revisions()[-1]:
            await self.move(migrations.revisions()[-1])

    async def ping(self) -> None:
        """Ask it for nothing. Raises DatabaseUnavailable."""
        async with self.reading() as session:
            await session.execute(text("SELECT 1"))

    async def revision(self) -> str | None:
        """How far the tables are, None where there are none of ours. Raises DatabaseUnavailable."""
        async with self._engine.connect() as connection:
            return await connection.run_sync(migrations.current)

    async def move(self, revision: str) -> None:
        """Bring the tables up or down to a revision, "base" for none at all. Raises DatabaseUnavailable."""
        async with migrations.alone(), self._turn(), self._writing.begin() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATING})"))
            try:
                await connection.run_sync(migrations.move, revision)
            except migrations.Unknown as error:
                raise DatabaseUnavailable(
                    f"The database {self.place} has tables of another release ({error}): update gaelp-tasks."
                ) from None

    async def close(self) -> None:
        """End every connection."""
        await self._engine.dispose()

    def _in_our_words(self, context: ExceptionContext) -> DatabaseUnavailable | None:
        """What SQLAlchemy raises instead; None for its own error."""
        if context.is_pre_ping:  # nobody has asked for anything: a new connection is tried
            return None
        told, error = context.sqlalchemy_exception, context.original_exception
        state = getattr(error, "sqlstate", None)
        wrong = state[:2] in WRONG_CLASSES if state else isinstance(told, ASKED_WRONGLY)
        lost = isinstance(told, exc.DBAPIError) and not wrong
        return self._unavailable(error) if lost or isinstance(error, OSError) else None

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        return DatabaseUnavailable(_sentence(self.place, error))


def _sentence(place: str, error: BaseException) -> str:
    own = error.__cause__ or error  # SQLAlchemy puts the name of a class before asyncpg's words
    said = str(own).partition("\n")[0].rstrip(". ") or type(own).__name__
    return f"The database {place} does not serve us: {said}."


def _postgres(url: str, answer_s: float) -> AsyncEngine:
    try:
        import asyncpg  # noqa: PLC0415  an extra of its own
    except ModuleNotFoundError:
        raise SettingsError(
            "GAELP_DATABASE_URL: PostgreSQL needs a driver: pip install 'gaelp-tasks[postgres]'."
        ) from None

    async def connect() -> Any:
        # asyncpg reads libpq's whole address: several hosts, sslmode, certificates
        try:
            return await asyncpg.connect(
                url, timeout=answer_s, command_timeout=answer_s, server_settings={"application_name": "gaelp"}
            )
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailable(_sentence(masked(url), error)) from None

    # a connection that the server has closed is made anew before it is used
    return create_async_engine("postgresql+asyncpg://", async_creator=connect, pool_pre_ping=True)
