"""The HTTP API for tests: in this process over ASGI, on a real Redis and a SQLite with the newest tables."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from gaelp_tasks.api import state
from gaelp_tasks.api.application import application
from gaelp_tasks.celery_app import app
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.settings import Settings

SECRET = "a secret of tests, and of nothing but tests, long enough for each algorithm"  # noqa: S105  signs what tests send
HOUR_S = 3600.0


class Api:
    """A running API; `api.as_(Role.ADMIN)` is a client of somebody who is signed in."""

    def __init__(self, made: FastAPI, settings: Settings) -> None:
        self.made = made
        self.settings = settings
        self.tokens = Tokens(settings)
        self._clients: list[httpx.AsyncClient] = []

    @property
    def state(self) -> state.State:
        return state.of(self.made)

    def token(self, role: Role = Role.USER, *, tenant: str = "", name: str = "") -> str:
        """Of somebody called as its role, if not by a name."""
        return self.tokens.issue(Caller(name=name or role.value, tenant=tenant, role=role), HOUR_S)

    def as_(self, role: Role = Role.USER, *, tenant: str = "", name: str = "") -> httpx.AsyncClient:
        """A client that is signed in."""
        return self.with_headers(Authorization=f"Bearer {self.token(role, tenant=tenant, name=name)}")

    def with_headers(self, **headers: str) -> httpx.AsyncClient:
        """A client that sends these; without any it is nobody."""
        transport = httpx.ASGITransport(self.made)
        client = httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


@asynccontextmanager
async def api_client(sql_url: str, **settings: Any) -> AsyncIterator[Api]:
    """The API on the Redis of this process (fixture `broker`); `settings` are names of Settings."""
    given = {"database_url": sql_url, "jwt_secret": SECRET, **settings}
    read = Settings(**(app.settings.model_dump(exclude_unset=True) | given))
    made = application(read)
    async with made.router.lifespan_context(made):
        api = Api(made, read)
        try:
            yield api
        finally:
            await api.close()


@pytest.fixture(scope="session")
def newest_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SQLite file with the newest tables, to copy."""
    import asyncio

    file = tmp_path_factory.mktemp("tables") / "gaelp.db"

    async def make() -> None:
        made = Database(f"sqlite:///{file}")
        await made.migrate()
        await made.close()

    asyncio.run(make())
    return file


@pytest.fixture
def api_sql(newest_tables: Path, tmp_path: Path) -> str:
    """The address of a SQLite of this test alone, with the newest tables."""
    return f"sqlite:///{shutil.copy(newest_tables, tmp_path / 'api.db')}"


@pytest_asyncio.fixture
async def api(broker: Any, api_sql: str) -> AsyncIterator[Api]:
    """The API as it is by default, on an empty Redis."""
    app.redis.flushdb()
    async with api_client(api_sql) as made:
        yield made


@pytest.fixture(scope="module")
def api_server(broker: Any, newest_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real `gaelp api`, shared by the tests of a module."""
    from support.api_server import ApiServer

    folder = tmp_path_factory.mktemp("api")
    shutil.copy(newest_tables, folder / "api.db")
    with ApiServer(folder) as server:
        yield server
