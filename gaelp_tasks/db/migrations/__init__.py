"""The only door to Alembic: from one revision of the tables to another. Revisions lie in versions/."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

__all__ = ["BASE", "Unknown", "alone", "current", "move", "revisions"]

BASE = "base"  #: Alembic's word for no tables at all

_one = threading.Lock()  # Alembic keeps in its modules what it is doing


class Unknown(Exception):
    """The database is at a revision that this release does not have; `str()` is its name."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


@cache
def revisions() -> tuple[str, ...]:
    """Those of this release, the newest last."""
    return tuple(step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions())[::-1]


def current(connection: Connection) -> str | None:
    """The revision that the database is at; None where it has no tables of ours."""
    # Alembic makes its table anew for each question, and the engine would keep 500 of them
    uncached = connection.execution_options(compiled_cache=None)
    return MigrationContext.configure(uncached).get_current_revision()


def move(connection: Connection, revision: str) -> None:
    """Go up or down to `revision` within the transaction of `connection`. Raises Unknown."""
    line = (None, *revisions())
    found = current(connection)
    if found not in line:
        raise Unknown(found)
    config = _config()
    config.attributes["connection"] = connection
    ahead = line.index(None if revision == BASE else revision) - line.index(found)
    if ahead:  # else another process was quicker
        (command.upgrade if ahead > 0 else command.downgrade)(config, revision)


@asynccontextmanager
async def alone() -> AsyncIterator[None]:
    """One migration at a time in this process, whichever loop it runs on."""
    while not _one.acquire(blocking=False):  # noqa: ASYNC110  an Event belongs to one loop
        await asyncio.sleep(0.02)
    try:
        yield
    finally:
        _one.release()
