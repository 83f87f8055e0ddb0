"""Backup and restore as docs/database.md describes them, by its very lines."""

import re
import shutil
import subprocess
from contextlib import closing, contextmanager
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
from support.needs import lacking
from support.ports import free_port
from support.redis_server import RedisServer, redis_7_binary, redis_binary

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "database.md").read_text()


def lines(heading):
    """The commands below a heading: to back up, to restore."""
    below = PAGE.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    return re.findall(r"```bash\n(.*?)```", below, flags=re.DOTALL)


def run(script, **variables):
    subprocess.run(
        ["bash", "-euc", script], check=True, env={"PATH": "/usr/bin:/bin"} | variables, timeout=60
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


# --- in compose ---


#: in place of the engine: what the page does in the container of Redis is done here, and nothing else
DOCKER = r"""#!/bin/sh
set -eu
[ "$1" = compose ]; shift
verb=$1; shift
case $verb in
  exec) [ "$1 $2" = "-T redis" ] || exit 0; shift 2 ;;
  run) [ "$1 $2 $3 $4" = "--rm --no-deps -T redis" ]; shift 4 ;;
  cp) set -- cp "${1#redis:}" "$2" ;;
  stop | up) exit 0 ;;
esac
here="s!/data/!$DATA/!g; s!/run/secrets/!$SECRETS/!g; s!redis-cli!& -p $PORT!"
for word; do
  shift
  set -- "$@" "$(printf %s "$word" | sed "$here")"
done
case $* in *[\ \>]/data*) exit 9 ;; esac
exec "$@"
"""


@pytest.fixture
def container(tmp_path):
    """The container of Redis as compose.yaml starts it: its users, its volume, and no default user."""
    if shutil.which("redis-cli") is None:
        lacking("no redis-cli on PATH (Debian: redis-tools)")
    for folder in ("data", "bin", "backup"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/docker").write_text(DOCKER)
    (tmp_path / "bin/docker").chmod(0o755)
    subprocess.run([ROOT / "docker/secrets.sh", tmp_path / "secrets"], check=True, capture_output=True)
    return Container(tmp_path, free_port())


class Container:
    def __init__(self, folder, port):
        self.folder = folder
        self.port = port

    def follow(self, lines):
        """The page's lines about Redis; those about PostgreSQL go elsewhere."""
        run(
            "\n".join(line for line in lines.splitlines() if "postgres" not in line),
            PATH=f"{self.folder / 'bin'}:/usr/bin:/bin",
            DATA=str(self.folder / "data"),
            SECRETS=str(self.folder / "secrets"),
            BACKUP=str(self.folder / "backup"),
            PORT=str(self.port),
        )

    @contextmanager
    def running(self):
        """A client of a worker while the server runs; the server is gone without a word afterwards."""
        [url] = (self.folder / "secrets/worker_broker_url").read_text().split()
        command = [
            *(redis_7_binary(), "--appendonly", "yes", "--dir", self.folder / "data", "--bind", "127.0.0.1"),
            *("--port", self.port, "--aclfile", self.folder / "secrets/redis_users"),
        ]
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) as server:
            try:
                with closing(
                    redis_py.Redis.from_url(
                        url.replace("@redis:6379", f"@127.0.0.1:{self.port}"), decode_responses=True
                    )
                ) as client:
                    eventually(lambda: answers(client, server))
                    yield client
            finally:
                server.kill()


def answers(client, server):
    try:
        return client.ping()
    except redis_py.ConnectionError:  # BusyLoadingError is one
        assert server.poll() is None
        return False


@pytest.mark.redis
def test_redis_in_compose_comes_back_as_it_was(container):
    backup, restore = lines("In compose")
    with container.running() as client:
        client.rpush("interactive", "a message")
        client.xadd("gaelp:history", {"end": "{}"}, id="5-1")
        client.set("celery-task-meta-x", "{}", ex=3600)
        container.follow(backup)
        client.rpush("interactive", "another")
        client.delete("gaelp:history")
    left = {file.name for file in (container.folder / "data").iterdir()}
    assert "backup.rdb" not in left, "it is fetched"
    assert left, "there is something to replace"
    container.follow(restore)
    for _ in range(2):  # what it was given lasts
        with container.running() as client:
            assert client.lrange("interactive", 0, -1) == ["a message"]
            assert client.xrange("gaelp:history") == [("5-1", {"end": "{}"})]
            assert 0 < client.ttl("celery-task-meta-x") <= 3600
            assert client.dbsize() == 3
