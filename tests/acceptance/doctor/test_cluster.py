"""`gaelp doctor --cluster`: a cluster in good order, made up and real, and one that is not there."""

import json
import signal
from time import time

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app
from gaelp_tasks.cli import cluster
from gaelp_tasks.cli.app import cli
from gaelp_tasks.settings import Settings
from support.beat import BeatProcess
from support.claims import message
from support.doctor import GOOD, health, said, wrong
from support.elsewhere import elsewhere
from support.eventually import eventually
from support.ports import free_port

pytestmark = [pytest.mark.redis]


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


def test_the_api_is_asked_where_its_address_is_given():
    silent = f"http://127.0.0.1:{free_port()}"
    assert said(cluster.api(Settings(api_url=silent))) == ("fail", f"none answers at {silent}")
    with health(503) as place:
        finding = f"answers at {place} with status 503: it is unwell"
        assert said(cluster.api(Settings(api_url=place))) == ("fail", finding)
    with health(200) as place:
        assert said(cluster.api(Settings(api_url=place)))[0] == "ok"
    unasked = Settings.model_construct(set(), api_url=silent)
    assert said(cluster.api(unasked))[0] == "ok", "who has none has said nothing"


def test_redis_away_is_the_row_that_counts_and_sql_is_looked_at_all_the_same(sql):
    with elsewhere("redis://127.0.0.1:1/0", database_url=sql) as place:
        rows = {row.name: row.verdict for row in cluster.cluster_checks(place.app)}
    assert rows == {"versions": "ok", "broker": "fail", "database": "ok"}


def test_nobody_is_announced(found):
    rows = found()
    assert said(rows["workers"]) == ("fail", "none is announced")
    assert "gaelp worker" in rows["workers"].advice


# --- for real ---------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.slow
def test_a_real_cluster_is_well(worker, broker, node, well, tmp_path, monkeypatch):
    sql = f"sqlite:///{tmp_path}/gaelp.db"
    ours = app.settings.model_copy(update={"database_url": sql, "api_url": well})
    monkeypatch.setattr(app, "settings", ours)
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
