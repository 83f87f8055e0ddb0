"""A real Prometheus reads a real worker: every query of a dashboard gives data, and an alert is raised."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from time import time

import pytest

from gaelp_tasks import counts, embed, invoke_agent
from gaelp_tasks.celery_app import app
from support.api_server import ApiServer
from support.claims import publish
from support.eventually import eventually
from support.exporter import Exporter
from support.needs import needs
from support.ports import free_port
from support.prometheus import Prometheus
from support.scripted_server import ScriptedServer

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    needs("prometheus", "prometheus"),
]

DASHBOARDS = sorted((Path(__file__).parents[2] / "docker/grafana/dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}
#: seen only where the model server is a process of this machine whose memory may be read
MAY_BE_HIDDEN = 'kind="held"'


def queries():
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"]
                for name, value in VARIABLES.items():
                    expr = expr.replace(name, value)
                assert "$" not in expr
                if MAY_BE_HIDDEN not in expr:
                    yield expr


@pytest.fixture
async def node():
    async with ScriptedServer() as server:
        yield server


async def test_every_query_of_every_dashboard_gives_data_and_an_alert_is_raised(
    start_worker, node, broker, newest_tables, tmp_path
):
    shutil.copy(newest_tables, tmp_path / "api.db")
    await asyncio.to_thread(story, start_worker, node.url, broker, tmp_path)


def hold_cores(file):
    """A training job that runs, as far as the tables know."""
    with closing(sqlite3.connect(file)) as db, db:
        names = [row[1] for row in db.execute("PRAGMA table_info(training_jobs)") if row[3] and not row[5]]
        given = {"state": "running", "cpu_milli": 500, "hyperparameters": "{}", "config": "{}", "agent_id": 1}
        values = [given.get(name, "2026-01-01 00:00:00" if name.endswith("_at") else 0) for name in names]
        marks = ",".join("?" * len(names))
        db.execute(f"INSERT INTO training_jobs ({','.join(names)}) VALUES ({marks})", values)  # noqa: S608  ours


def story(start_worker, node, broker, tmp_path):
    """In one thread: Celery's results belong to the thread that asked."""
    port = free_port()
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_METRICS_PORT=str(port))
    with (
        Exporter(tmp_path, broker.url) as exporter,
        ApiServer(tmp_path, GAELP_API_TELLS_CLUSTER="false") as api,
        Prometheus(
            tmp_path,
            {"gaelp": [exporter.port], "gaelp-worker": [port], "gaelp-api": [api.metrics_port]},
        ) as prometheus,
    ):
        eventually(lambda: len(prometheus.ask("up == 1")) == 3, what="all pages are scraped")
        eventually(lambda: prometheus.ask("gaelp_invocations_total"), what="the zeros are there")
        for number in range(6):
            invoke_agent.delay(f"Hi {number}", tier="batch").get(timeout=30)
        embed.delay(["a"]).get(timeout=30)
        counts.count(app, counts.PREEMPTED)
        app.redis.set(app.keys.beat_read, int(time() * 1000))  # as a beat that leads does
        with api.session() as ann:
            made = ann.post(f"{api.url}/api/v1/agents", json={"name": "a", "type": "research"}, timeout=10)
            assert made.status_code == 201
        hold_cores(tmp_path / "api.db")
        publish("junk that no worker can read")
        for query in queries():
            eventually(lambda query=query: prometheus.ask(query), what=query)
        [ended] = eventually(
            lambda: prometheus.ask(
                'sum(increase(gaelp_invocations_total{tier="batch", agent="chat"}[1m])) > 0'
            )
        )
        assert float(ended["value"][1]) > 0
        [raised] = eventually(lambda: prometheus.ask('ALERTS{alertname="GaelpDeadLetters"}'))
        assert raised["metric"]["severity"] == "warning"
        others = prometheus.ask('ALERTS{alertstate="firing", alertname!="GaelpDeadLetters"}')
        assert not others
