"""What the doctor tells of Redis: each row is told when wrong, and silent when right."""

import re
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError

from gaelp_tasks.cli import cluster
from support.doctor import GOOD, said, wrong
from support.eventually import eventually
from support.redis_server import RedisServer, redis_7_binary

pytestmark = [pytest.mark.redis]

ROOT = Path(__file__).parents[3]


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
