"""SQLite on an event loop: what is short runs where it is asked, the rest in a thread.

A hop to a thread and back costs more than most statements, and a writer who hops keeps all others waiting for
his turns of the loop. So a SELECT runs on the loop for a bounded number of steps, and once more in a thread
where these do not suffice. A change runs on the loop where it was short the last time. A commit waits for the
disk, so it is always beside the loop.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import AsyncAdaptedQueuePool, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Connection as EngineConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from gaelp_tasks.threads import Crew

__all__ = ["WRITING", "engine"]

FOLDER, FILE = 0o700, 0o600  #: modes of what we make: history may hold what people have asked
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")
WRITING = {"gaelp_writing": True}  #: a writer waits at its start, or two wait for each other
STEPS = 10_000  #: of SQLite's machine; a SELECT may take up to twice as many on the loop, about 1 ms
SHORT_S = 0.001  #: processor time; a change that took less runs on the loop the next time
STATEMENTS = 1_000  #: how many changes' times are remembered, and how many statements are kept prepared
CONNECTIONS = 16  #: for so many who read what is long, each with its thread; made when they are needed
HURRY_S = 0.05  #: until a statement is broken off, or once more, whose connection is to be closed
PAUSE_S = 0.002  #: between two looks whether another process has finished writing


class Desk:
    """What all connections to one file share. Belongs to one event loop."""

    def __init__(self, file: Path | None, answer_s: float) -> None:
        """`file` None is a database in memory; `answer_s` bounds each wait for a lock."""
        self.file = file
        self.answer_s = answer_s
        self.spent_s: dict[str, float] = {}
        self.threads = Crew(CONNECTIONS, "gaelp-sqlite")

    def connect(self) -> "Connection":
        """A new connection. Raises sqlite3.Error."""
        made: Connection = await_only(_ended(self.threads.submit(Connection, self)))
        return made

    def disconnected(self, _: Any) -> None:
        """Let the threads end; what is asked afterwards has new ones."""
        self.threads.close()
        self.threads = Crew(CONNECTIONS, "gaelp-sqlite")

    def remember(self, sql: str, spent_s: float) -> None:
        """How long a change has taken."""
        if len(self.spent_s) >= STATEMENTS:
            self.spent_s.clear()
        self.spent_s[sql] = spent_s


class Connection(sqlite3.Connection):
    """A connection as SQLAlchemy uses it on a loop: one statement at a time, each read to its end."""

    def __init__(self, desk: Desk) -> None:
        """Makes the file where it is missing, and waits for who has it locked. Raises sqlite3.Error."""
        if desk.file:
            _make(desk.file)
        super().__init__(
            desk.file or ":memory:",
            timeout=desk.answer_s,
            isolation_level=None,  # transactions begin where we say, not where the driver guesses
            check_same_thread=False,
            cached_statements=STATEMENTS,
        )
        self._desk = desk
        self._on_loop = False
        self._ticks = 0
        self._job: Future[Any] | None = None  #: what is done beside the loop
        self.writing = False  #: what the transaction is for, the next one where there is none
        for pragma in PRAGMAS:
            self._arrange(f"PRAGMA {pragma}")
        self.set_progress_handler(self._enough, STEPS)

    def cursor(self) -> "Cursor":  # type: ignore[override]  # SQLAlchemy names no factory
        """For one statement."""
        return Cursor(self)

    def begin(self) -> None:
        """Start a transaction, a writer's when nobody else writes. Raises sqlite3.OperationalError."""
        if self.writing:
            await_only(self._begin_writing())
        else:
            self._tell("BEGIN")

    def commit(self) -> None:
        """Returns when the disk has it. Raises sqlite3.Error."""
        if self.in_transaction:
            self.beside(super().commit)

    def ask(self, sql: str, run: Callable[[], Any]) -> Any:
        """What `run` returns, the whole of one statement, on the loop or beside it. Raises sqlite3.Error."""
        if sql.startswith("SELECT"):
            try:
                self._on_loop, self._ticks = True, 0
                return await_only(_here(run))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
            finally:
                self._on_loop = False
            return self.beside(run)
        # a change in a transaction that was to read may have to wait for a lock
        if self.writing and self._desk.spent_s.get(sql, SHORT_S) < SHORT_S:
            return await_only(_here(partial(self._timed, sql, run)))
        return self.beside(partial(self._timed, sql, run))

    def beside(self, run: Callable[[], Any]) -> Any:
        """What `run` returns in a thread. Raises what it raises."""
        job = self._job = self._desk.threads.submit(run)
        try:
            return await_only(_ended(job, self.interrupt))
        finally:
            if job.done():  # else the loop has ended
                self._job = None

    def close(self) -> None:
        """Whatever has ended the loop meanwhile: first a thread that has the connection in hand lets go."""
        while self._job and wait([self._job], HURRY_S).not_done:
            self.interrupt()
        super().close()

    def _timed(self, sql: str, run: Callable[[], Any]) -> Any:
        begun = time.thread_time()
        try:
            return run()
        finally:
            self._desk.remember(sql, time.thread_time() - begun)

    def _enough(self) -> bool:
        self._ticks += 1  # the first may be due to steps of the same statement's runs before
        return self._on_loop and self._ticks > 1

    async def _begin_writing(self) -> None:
        try:
            async with asyncio.timeout(self._desk.answer_s):
                while not self._begun():  # noqa: ASYNC110  no process tells another
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise sqlite3.OperationalError("database is locked") from None

    def _begun(self) -> bool:
        self._tell("PRAGMA busy_timeout = 0")  # SQLite itself would wait on the loop
        try:
            self._tell("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
        finally:
            self._tell(f"PRAGMA busy_timeout = {self._desk.answer_s * 1000:.0f}")
        return True

    def _arrange(self, pragma: str) -> None:
        # SQLite itself does not wait where somebody writes to a file that is not in WAL yet, as when several
        # bring a new one there
        until = time.monotonic() + self._desk.answer_s
        while True:
            try:
                return self._tell(pragma)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                    raise
            time.sleep(PAUSE_S)

    def _tell(self, sql: str) -> None:
        sqlite3.Cursor(self).execute(sql).fetchall()


class Cursor(sqlite3.Cursor):
    """One statement, and all of its rows."""

    connection: Connection
    _rows: Iterator[Any] = iter(())

    def execute(self, sql: str, parameters: Any = (), /) -> "Cursor":
        """Raises sqlite3.Error."""
        self._rows = iter(self.connection.ask(sql, partial(self._all, sql, parameters)))
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> "Cursor":
        """Raises sqlite3.Error."""
        self.connection.beside(partial(super().executemany, sql, parameters))
        return self

    def fetchone(self) -> Any:
        """The next row; None after the last."""
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows, `arraysize` with None."""
        return list(islice(self._rows, self.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        """Those that are left."""
        return list(self._rows)

    async def _async_soft_close(self) -> None:
        """SQLAlchemy's own: nothing is left open."""

    def _all(self, sql: str, parameters: Any) -> Sequence[Any]:
        super().execute(sql, parameters)
        return super().fetchall()


class Dialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's SQLite with these connections."""

    driver = "gaelp"
    supports_statement_cache = True
    is_async = True
    has_terminate = True  # close() waits for nothing

    def do_begin(self, dbapi_connection: Any) -> None:
        """SQLAlchemy leaves it to the driver to begin, and this driver does not guess."""
        dbapi_connection.begin()


async def _here(run: Callable[[], Any]) -> Any:
    """What `run` returns; SQLAlchemy takes a driver that awaits nothing for one that holds the loop up."""
    return run()


async def _ended(job: "Future[Any]", hurry: Callable[[], None] = lambda: None) -> Any:
    """What a job returns; who is cancelled waits for its end all the same: it has the connection in hand."""
    cancelled: asyncio.CancelledError | None = None
    waited = asyncio.wrap_future(job)
    while not waited.done():
        try:
            await asyncio.wait([waited])
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled:
        waited.exception()  # else the loop tells that nobody has looked at it
        raise cancelled
    return waited.result()


def _make(file: Path) -> None:
    try:
        if not file.exists():
            file.parent.mkdir(mode=FOLDER, parents=True, exist_ok=True)
            file.touch(mode=FILE)
    except OSError as error:
        raise sqlite3.OperationalError(str(error)) from None


def engine(file: Path | None, answer_s: float) -> AsyncEngine:
    """For a file, or with None for a database in memory; with the execution options WRITING it writes."""
    desk = Desk(file, answer_s)
    made = create_async_engine(
        "sqlite+gaelp://",
        creator=desk.connect,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=CONNECTIONS if file else 1,  # in memory there is only what one connection sees
        max_overflow=0,
        pool_timeout=answer_s,
        pool_use_lifo=True,  # the one that was used last has the most in its cache
    )

    def prepare(connection: EngineConnection) -> None:
        held: Any = connection.connection.dbapi_connection
        held.writing = "gaelp_writing" in connection.get_execution_options()

    event.listen(made.sync_engine, "begin", prepare)
    event.listen(made.sync_engine, "engine_disposed", desk.disconnected)
    return made


registry.register("sqlite.gaelp", __name__, "Dialect")
