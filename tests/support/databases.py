"""Databases for tests: a file of SQLite, and one in a real PostgreSQL where its programs are installed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import delete

from gaelp_tasks.db.base import Base
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


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def kept_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of one database with the newest tables, for many tests: to make one takes longer."""
    url = f"sqlite:///{tmp_path_factory.mktemp('kept')}/gaelp.db"
    if request.param == "postgres":
        url = str(request.getfixturevalue("postgres").new_database())

    async def make() -> None:
        made = Database(url)
        await made.migrate()
        await made.close()

    asyncio.run(make())
    return url


@pytest_asyncio.fixture
async def kept_db(kept_url: str) -> AsyncIterator[Database]:
    """That database; what the test has left in the tables that it knows is taken out."""
    made = Database(kept_url)
    yield made
    async with made.writing() as session:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name != "identity":
                await session.execute(delete(table))
    await made.close()
