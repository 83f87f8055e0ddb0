"""A Redis, nodes and beats for `gaelp doctor --cluster` to look at."""

import asyncio
from time import time

import pytest

from gaelp_tasks.cli import cluster
from gaelp_tasks.db.database import Database
from support.doctor import health
from support.elsewhere import elsewhere
from support.redis_server import RedisServer

CONFIG = {"maxmemory": "0", "maxmemory-policy": "noeviction", "appendonly": "yes"}


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture
def admin(server):
    with server.client() as client:
        client.flushall()
        yield client
        for name, value in CONFIG.items():
            client.config_set(name, value)


@pytest.fixture(scope="module")
def sql(tmp_path_factory):
    """A database with the newest tables."""
    url = f"sqlite:///{tmp_path_factory.mktemp('sql')}/gaelp.db"

    async def make():
        db = Database(url)
        await db.migrate()
        await db.close()

    asyncio.run(make())
    return url


@pytest.fixture(scope="module")
def well():
    """The address of an API that is well; at the one that is taken by default anybody's may be."""
    with health(200) as url:
        yield url


@pytest.fixture
def found(server, admin, sql, well, monkeypatch):
    """`found(*nodes)` are the rows by name; these nodes go on announcing themselves, but for the silent."""

    def look(*nodes, silent=(), ahead_s=0.0, url=server.url, **settings):
        with elsewhere(url, **{"database_url": sql, "api_url": well, **settings}) as place:

            def announce(_=0.0, those=tuple(one for one in nodes if one not in silent)):
                for one in those:
                    told = one.model_copy(update={"seen_at": time() + ahead_s})
                    admin.set(place.app.keys.node(one.worker, one.url), told.model_dump_json())

            announce(those=nodes)
            monkeypatch.setattr(cluster, "sleep", announce)
            patience_s = 0.05 if silent else 10.0
            rows = list(cluster.cluster_checks(place.app, patience_s))
            named = {row.name: row for row in rows}
            assert len(named) == len(rows), "a row has a name of its own"
            assert all(row.advice for row in rows if row.verdict != "ok"), "what to do is told"
            return named

    return look


@pytest.fixture
def leads(admin):
    """`leads(standing_by)`: a beat leads, and so many more are there."""

    def begin(standing_by):
        admin.set("gaelp:beat:leader", "host:77:ab12cd34|5")
        admin.set("gaelp:beat:fence", 5)
        ticked_ms = time() * 1000
        admin.zadd("gaelp:beat:seen", {f"host:{n}": ticked_ms for n in range(1 + standing_by)})
        admin.zadd("gaelp:beat:seen", {"gone": ticked_ms - 10_000})

    return begin
