"""`gaelp doctor --cluster` on a real Redis: each row is told when wrong, and silent when right."""

import asyncio
import json
import re
import signal
import sqlite3
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from time import time

import pytest
from redis.exceptions import OutOfMemoryError
from typer.testing import CliRunner

from gaelp_tasks import app
from gaelp_tasks.cli import backlog, cluster
from gaelp_tasks.cli.app import cli
from gaelp_tasks.db.database import Database
from gaelp_tasks.demo.broker import free_port
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot
from gaelp_tasks.settings import Settings
from support.beat import BeatProcess
from support.claims import message
from support.elsewhere import elsewhere
from support.eventually import eventually
from support.redis_server import RedisServer, redis_7_binary

pytestmark = [pytest.mark.redis]

ROOT = Path(__file__).parents[2]
OURS = version("gaelp-tasks")
MEMORY = MemorySnapshot(total_bytes=8 * 1024**3, free_bytes=4 * 1024**3, source="host")
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


def node(name="one", **facts):
    return NodeSnapshot(
        **{
            "worker": f"{name}@a", "pid": 1, "url": f"http://{name}", "healthy": True, "slots": 2,
            "memory": MEMORY, "models": (f"of-{name}:latest", "phi:latest"), "release": OURS, "holder": name,
            "num_parallel": 2, "num_ctx": 4096, "started_at": 1.0, "seen_at": 0.0,
        }
        | facts
    )  # fmt: skip


GOOD = (node("one"), node("two"))


@pytest.fixture
def found(server, admin, sql, monkeypatch):
    """`found(*nodes)` are the rows by name; these nodes go on announcing themselves, but for the silent."""

    def look(*nodes, silent=(), ahead_s=0.0, url=server.url, **settings):
        with elsewhere(url, **{"database_url": sql, **settings}) as place:

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


def wrong(rows):
    return {name for name, row in rows.items() if row.verdict != "ok"}


def said(row):
    return row.verdict, row.finding


# --- all at once ------------------------------------------------------------------------


def test_a_cluster_in_good_order_has_nothing_to_mend(found, leads, admin):
    leads(1)
    admin.zadd("gaelp:leases", {"one|1": (time() + 60) * 1000})
    admin.zadd("gaelp:parked", {"later": (time() + 60) * 1000})
    admin.lpush("batch.phi", message("a", gaelp_published_at=time()))
    rows = found(*GOOD)
    assert wrong(rows) == set(), rows
    assert rows.keys() == {
        *("versions", "broker", "eviction policy", "persistence", "redis version", "redis memory"),
        *("redis disk", "results", "namespace", "database", "beat", "clocks", "node addresses", "releases"),
        *("worker one@a on http://one", "worker two@a on http://two", "GAELP_NUM_CTX", "GAELP_NUM_PARALLEL"),
        *("queues", "wait interactive", "wait batch", "wait background", "parked", "suspects", "leases"),
        *("dead letters", "api"),
    }
    assert rows["queues"].finding == "1 wait where some node takes them"
    assert rows["leases"].finding.startswith("1 messages are held")
    assert rows["beat"].finding == "host:77 leads, 1 stand by"


@contextmanager
def health(status):
    """Where an API answers its health with this."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_api_is_asked_where_its_address_is_given():
    silent = f"http://127.0.0.1:{free_port()}"
    assert said(cluster.api(Settings(api_url=silent))) == ("fail", f"none answers at {silent}")
    with health(503) as place:
        finding = f"answers at {place} with status 503: it is unwell"
        assert said(cluster.api(Settings(api_url=place))) == ("fail", finding)
    with health(200) as place:
        assert said(cluster.api(Settings(api_url=place)))[0] == "ok"


def test_redis_away_is_the_row_that_counts_and_sql_is_looked_at_all_the_same(sql):
    with elsewhere("redis://127.0.0.1:1/0", database_url=sql) as place:
        rows = {row.name: row.verdict for row in cluster.cluster_checks(place.app)}
    assert rows == {"versions": "ok", "broker": "fail", "database": "ok"}


def test_nobody_is_announced(found):
    rows = found()
    assert said(rows["workers"]) == ("fail", "none is announced")
    assert "gaelp worker" in rows["workers"].advice


# --- Redis ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "row", "verdict"),
    [
        ("maxmemory-policy", "allkeys-lru", "eviction policy", "fail"),
        ("appendonly", "no", "persistence", "warn"),
    ],
)
def test_a_redis_that_may_lose_work(found, admin, name, value, row, verdict):
    admin.config_set(name, value)
    assert found(*GOOD)[row].verdict == verdict


@pytest.mark.parametrize(("part", "verdict"), [(0.3, "ok"), (0.8, "warn"), (0.95, "fail")])
def test_a_redis_that_is_nearly_full(found, admin, part, verdict):
    admin.setrange("ballast", 32 * 1024**2, "x")  # beside which buffers of connections are nothing

    def told():  # what the test before has left is freed in the background
        admin.config_set("maxmemory", int(admin.info("memory")["used_memory"] / part))
        try:
            row = found(*GOOD)["redis memory"]
        except OutOfMemoryError:  # it was measured while that was so
            return False
        return row.verdict == verdict and "of maxmemory" in row.finding

    eventually(told)


def test_a_redis_that_cannot_write_to_its_disk(found, admin):
    file = Path(admin.config_get("dir")["dir"]) / "dump.rdb"
    file.unlink(missing_ok=True)
    file.mkdir()
    admin.bgsave()
    eventually(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
    row = found(*GOOD)["redis disk"]
    assert row.verdict == "fail"
    assert "rdb_last_bgsave_status" in row.finding
    file.rmdir()
    admin.bgsave()
    eventually(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "ok")
    assert found(*GOOD)["redis disk"].verdict == "ok"


def test_a_redis_older_than_any_test(found, monkeypatch):
    monkeypatch.setattr(cluster, "OLDEST_REDIS", (99, 0))
    row = found(*GOOD)["redis version"]
    assert row.verdict == "warn"
    assert "older than 99.0" in row.finding


def test_results_elsewhere(found, server):
    other = server.url.replace("/0", "/1")
    assert found(*GOOD, result_backend=other)["results"].verdict == "warn"
    away = found(*GOOD, result_backend="redis://me:SECRET@127.0.0.1:1/0")["results"]
    assert away.verdict == "fail"
    assert "SECRET" not in str(away)
    assert found(*GOOD, result_backend=server.url)["results"].verdict == "ok"


def test_another_namespace(found, admin):
    admin.set("team:gaelp:node:w@a:http://one", GOOD[0].model_dump_json())
    beside = found(*GOOD)["namespace"]
    assert said(beside) == ("ok", "none; this Redis also serves: 'team:'")
    admin.flushall()
    admin.set("team:gaelp:node:w@a:http://one", GOOD[0].model_dump_json())
    missed = found()["namespace"]
    assert said(missed) == ("fail", "no worker is announced under ours (none), but under: 'team:'")
    assert said(found(*GOOD, namespace="mine:")["namespace"])[0] == "ok"


class TestUnderTheReadersUser:
    @pytest.fixture
    def server(self):
        with RedisServer(redis_7_binary()) as running:
            yield running

    def test_the_reader_of_the_docs_may_ask_all_of_it(self, found, admin, server, leads):
        [line] = re.findall(r"(?m)^ACL SETUSER reader .*$", (ROOT / "docs/redis.md").read_text())
        admin.execute_command(*line.split())
        admin.acl_log_reset()
        leads(1)
        rows = found(*GOOD, url=f"redis://reader:change-me@127.0.0.1:{server.port}/0")
        assert wrong(rows) == set(), rows
        refused = {entry["object"].partition("|")[0] for entry in admin.acl_log()}
        assert refused <= {"command", "client", "config"}, "what is done without"


# --- beat and SQL -----------------------------------------------------------------------


def test_no_beat_leads(found, admin, leads):
    assert found(*GOOD)["beat"].verdict == "warn", "none ever did"
    admin.set("gaelp:beat:fence", 5)
    assert said(found(*GOOD)["beat"])[0] == "fail"
    leads(0)
    alone = found(*GOOD)["beat"]
    assert said(alone) == ("ok", "host:77 leads, none stands by"), "one machine"
    row = found(node("one"), node("two", worker="two@b"))["beat"]
    assert said(row) == ("warn", "host:77 leads, and none stands by")


def test_several_machines_need_one_postgres(found):
    assert "shared database" not in found(*GOOD)
    row = found(node("one"), node("two", worker="two@b"))["shared database"]
    assert row.verdict == "warn"
    assert "workers of 2 are announced" in row.finding
    assert "PostgreSQL" in row.advice


def test_history_that_goes_to_another_database(found, admin, sql):
    assert "history" not in found(*GOOD), "nobody has recorded anything"
    admin.set("gaelp:history:home", "somebody else's")
    assert found(*GOOD)["history"].verdict == "warn"
    [(own,)] = _sqlite(sql, "SELECT id FROM identity")
    admin.set("gaelp:history:home", own)
    assert found(*GOOD)["history"].verdict == "ok"


def _sqlite(url, question):
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return connection.execute(question).fetchall()


# --- nodes ------------------------------------------------------------------------------


def test_a_node_that_is_unwell_closed_or_silent(found):
    unwell = node("one", healthy=False, trouble="It hangs.")
    rows = found(unwell, GOOD[1], silent=[unwell])
    assert rows["worker one@a on http://one"].verdict == "fail", "worse than silent"
    assert rows["worker one@a on http://one"].advice == "It hangs."
    row = found(node("one", closed="cordoned"), GOOD[1])["worker one@a on http://one"]
    assert row.verdict == "warn"
    assert row.finding.startswith("cordoned: takes nothing new")
    assert "gaelp nodes resume one@a" in row.advice
    stopping = found(node("one", closed="stopping"), GOOD[1])["worker one@a on http://one"]
    assert (stopping.verdict, stopping.advice) == ("warn", "It ends by itself.")
    rows = found(*GOOD, silent=[GOOD[0]])
    assert wrong(rows) == {"beat", "worker one@a on http://one"}
    assert "not while we listened" in rows["worker one@a on http://one"].finding


@pytest.mark.parametrize(("ahead_s", "words"), [(30.0, "30 s ahead"), (-30.0, "30 s behind"), (1.0, "")])
def test_clocks_of_workers(found, ahead_s, words):
    row = found(*GOOD, ahead_s=ahead_s)["clocks"]
    assert row.verdict == ("warn" if words else "ok")
    if words:
        assert row.finding == f"against that of Redis one@a is {words}, two@a is {words}"


def test_the_clock_of_this_machine(found, monkeypatch):
    monkeypatch.setattr(cluster, "time", lambda: time() + 100.0)
    assert "this machine is 100 s ahead" in found(*GOOD)["clocks"].finding


def test_two_workers_with_one_address(found):
    row = found(node("one"), node("two", worker="two@b", url="http://one"))["node addresses"]
    assert said(row) == ("warn", "announced by several workers: http://one by one@a, two@b")


def test_a_worker_of_another_release(found):
    row = found(node("one", release="0.0.9"), node("two", release=""), node("three"))["releases"]
    assert row.verdict == "warn"
    assert "one@a runs 0.0.9, two@a runs an earlier release" in row.finding


@pytest.mark.parametrize(("setting", "value"), [("num_ctx", 8192), ("num_parallel", 4)])
def test_nodes_that_treat_a_model_differently(found, setting, value):
    name = f"GAELP_{setting.upper()}"
    row = found(node("one"), node("two", models=("phi",), **{setting: value}))[name]
    assert row.verdict == "warn"
    assert "phi:latest" in row.finding
    assert f"{value} at two@a" in row.finding
    alone = found(node("one"), node("two", models=("other:latest",), **{setting: value}))[name]
    assert alone.verdict == "ok", "they have no model in common"
    untold = {"num_ctx": None, "num_parallel": 0}
    assert found(node("one"), node("two", **{setting: untold[setting]}))[name].verdict == "ok"


# --- what waits and what is held --------------------------------------------------------


def test_queues_that_nobody_serves(found, admin):
    admin.sadd("gaelp:queues", "batch.nowhere_1b", "batch.of-one")
    admin.lpush("batch.nowhere_1b", message("a"), message("b"))
    admin.lpush("batch.of-one", message("c"))
    rows = found(*GOOD)
    missing = rows["queue batch.nowhere_1b"]
    assert missing.verdict == "fail"
    assert missing.finding.startswith("2 wait, the oldest for 0 s. No node has model nowhere_1b")
    assert rows["queues"].finding == "1 wait where some node takes them"
    closed = found(node("one", closed="cordoned"), GOOD[1])
    assert "takes nothing new: one@a (cordoned)" in closed["queue batch.of-one:latest"].finding


def test_what_is_unsorted_or_names_no_model_needs_any_node(found, admin):
    admin.lpush("interactive", message("a"))
    admin.lpush("batch.any", message("b"))
    assert found(*GOOD)["queues"].finding == "2 wait where some node takes them"
    admin.delete(*admin.keys("gaelp:node:*"))
    rows = found()
    assert {"queue interactive", "queue batch.any"} <= wrong(rows)
    assert "No worker is running" in rows["queue interactive"].finding


@pytest.mark.parametrize("tier", backlog.LONG_S)
def test_what_waits_too_long(found, admin, tier):
    for waited_s, verdict in ((backlog.LONG_S[tier] - 30, "ok"), (backlog.LONG_S[tier] + 30, "warn")):
        admin.flushall()
        admin.lpush(f"{tier}.phi", message("a", gaelp_published_at=time() - waited_s))
        rows = found(*GOOD)
        assert rows[f"wait {tier}"].verdict == verdict
        assert "s (phi:latest)" in rows[f"wait {tier}"].finding
        assert {f"wait {tier}"} >= wrong(rows) - {"beat"}


def test_what_is_long_is_what_the_alerts_say():
    rules = (ROOT / "docker/prometheus/alerts.yaml").read_text()
    told = re.findall(r'gaelp_queue_oldest_seconds\{tier="(\w+)"\}\) > (\d+)', rules)
    assert {tier: float(bound_s) for tier, bound_s in told} == backlog.LONG_S


def test_what_is_parked_and_overdue(found, admin):
    admin.zadd("gaelp:parked", {"a": (time() - 60) * 1000, "b": (time() - 1) * 1000})
    row = found(*GOOD)["parked"]
    assert row.verdict == "fail"
    assert row.finding.startswith("1 messages have been due")


def test_suspects_and_dead_letters(found, admin):
    admin.lpush("gaelp:suspects", "x")
    admin.zadd("gaelp:dead", {"x": 1})
    rows = found(*GOOD)
    assert (rows["suspects"].verdict, rows["dead letters"].verdict) == ("warn", "warn")


def test_leases_that_nobody_ends(found, admin):
    admin.zadd("gaelp:leases", {"one|1": (time() - 60) * 1000, "one|2": (time() + 60) * 1000})
    row = found(*GOOD)["leases"]
    assert row.verdict == "fail"
    assert row.finding.startswith("the leases of 1 messages ended")


def test_leases_of_somebody_who_is_not_announced(found, admin):
    ends = (time() + 60) * 1000
    admin.zadd("gaelp:leases", {"ghost|1": ends, "ghost|2": ends, "one|1": ends})
    row = found(*GOOD)["leases"]
    assert said(row) == ("warn", "2 messages are held by somebody who announces no node (ghost)")
    assert found(node("one", holder=""))["leases"].verdict == "ok", "an earlier release does not tell"


def test_what_was_claimed_just_now_is_nobodys_fault():
    now = time()
    assert backlog.leases({}, {"new|1": now + 5}, GOOD, now).verdict == "ok"
    assert backlog.leases({"old|1": now + 5}, {}, GOOD, now).verdict == "ok"


# --- for real ---------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.slow
def test_a_real_cluster_is_well(worker, broker, node, tmp_path, monkeypatch):
    sql = f"sqlite:///{tmp_path}/gaelp.db"
    monkeypatch.setattr(app, "settings", app.settings.model_copy(update={"database_url": sql}))
    settings = {"GAELP_BROKER_URL": broker.url, "GAELP_DATABASE_URL": sql}
    with (
        BeatProcess(tmp_path, name="first", **settings),
        BeatProcess(tmp_path, name="second", **settings),
    ):
        eventually(lambda: app.redis.exists(app.keys.beat), what="a beat leads")
        done = CliRunner().invoke(cli, ["doctor", "--cluster", "--json"])
        rows = {row["name"]: row for row in json.loads(done.stdout)}
        assert [row for row in rows.values() if row["verdict"] != "ok"] == []
        assert done.exit_code == 0
        assert rows["beat"]["finding"].endswith("leads, 1 stand by")
        assert f"worker {worker.name} on {node}" in rows
        worker.send(signal.SIGSTOP)
        try:
            stopped = CliRunner().invoke(cli, ["doctor", "--cluster"])
        finally:
            worker.send(signal.SIGCONT)
    assert f"warn  worker {worker.name} on {node}: last announced" in stopped.stdout
    assert stopped.exit_code == 0, "a warning is none"
