"""Databases for tests: a file of SQLite, and one in a real PostgreSQL where its programs are installed."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gaelp_tasks.db.database import Database


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL for the session; `postgres.new_database()` is the address of an empty database in it."""
    from support.postgres_server import PostgresServer

    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database: the test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gaelp.db"
    return str(request.getfixturevalue("postgres").new_database())


@pytest_asyncio.fixture
async def db(sql_url: str) -> AsyncIterator[Database]:
    """A database with the newest tables."""
    made = Database(sql_url)
    await made.migrate()
    yield made
    await made.close()
