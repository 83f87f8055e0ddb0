"""Backup and restore as docs/database.md describes them, by its very lines."""

import re
import shutil
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis as redis_py

from gaelp_tasks.db import address
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.history import History
from gaelp_tasks.db.identity import identity
from gaelp_tasks.models.ending import Ending
from support.eventually import eventually
from support.redis_server import RedisServer, redis_binary

PAGE = (Path(__file__).parents[2] / "docs" / "database.md").read_text()


def lines(heading):
    """The commands below a heading: to back up, to restore."""
    below = PAGE.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    return re.findall(r"```bash\n(.*?)```", below, flags=re.DOTALL)


def run(script, **variables):
    subprocess.run(
        ["bash", "-euc", script], check=True, env={"PATH": "/usr/bin:/bin", **variables}, timeout=60
    )


def a_row(name):
    end = Ending(id=name, task="gaelp.invoke_agent", state="done", tier="batch")
    return end.columns() | {"finished_at": datetime.now(UTC)}


async def names(url):
    db = Database(url)
    await db.migrate()
    found = sorted(row.id for row in await History(db, None).listed(most=100)), await identity(db)
    await db.close()
    return found


async def test_a_database_comes_back_as_it_was(sql_url, tmp_path):
    is_postgres = address.is_postgres(sql_url)
    for program in ("pg_dump", "pg_restore") if is_postgres else ("sqlite3",):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on PATH")
    backup, restore = lines("PostgreSQL" if is_postgres else "SQLite")
    file = str(address.sqlite_file(sql_url))
    given = {"GAELP_DATABASE_URL": sql_url, "GAELP_FILE": file, "BACKUP": str(tmp_path / "backup")}
    db = Database(sql_url)
    await db.migrate()
    await History(db, None).add([a_row("a"), a_row("b")])
    run(backup, **given)  # while somebody has it open
    before = await names(sql_url)
    await History(db, None).add([a_row("c")])
    await History(db, None).purge(["a"])
    await db.close()
    assert (await names(sql_url))[0] == ["b", "c"]
    run(restore, **given)
    assert await names(sql_url) == before == (["a", "b"], before[1])


@pytest.mark.redis
def test_redis_comes_back_as_it_was(tmp_path):
    with RedisServer() as server:
        with closing(server.client()) as client:
            client.rpush("interactive", "a message")
            client.xadd("gaelp:history", {"end": "{}"}, id="5-1")
            client.save()
            (tmp_path / "backup.rdb").write_bytes((server.directory / "data" / "dump.rdb").read_bytes())
            client.rpush("interactive", "another")
        server.stop()
        shutil.rmtree(server.directory / "data")
        (server.directory / "data").mkdir()
        shutil.copy(tmp_path / "backup.rdb", server.directory / "data" / "dump.rdb")
        take_in(server)
        server.start()
        with closing(server.client()) as client:
            assert client.lrange("interactive", 0, -1) == ["a message"]
            assert client.xrange("gaelp:history") == [("5-1", {"end": "{}"})]


def take_in(server):
    """The steps of the page between the file and the usual start."""
    command = [
        redis_binary(),
        "--appendonly",
        "no",
        "--dir",
        server.directory / "data",
        "--port",
        str(server.port),
    ]
    with subprocess.Popen([*map(str, command), "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL) as alone:
        with closing(redis_py.Redis(port=server.port, decode_responses=True)) as client:

            def is_up():
                try:
                    return client.ping()
                except redis_py.ConnectionError:
                    assert alone.poll() is None
                    return False

            eventually(is_up)
            client.config_set("appendonly", "yes")
            eventually(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
            client.shutdown(nosave=True)
        assert alone.wait(20) == 0
