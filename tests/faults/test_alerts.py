"""Each alert raised by its fault on a real cluster, and told to a receiver by a real Alertmanager.

Those of the API have theirs in test_api_alerts.py; the two together are all of docker/prometheus/alerts.yaml.
Their waiting times are left out here, and two bounds shortened (support/prometheus.py); that they wait, and
for how long, is what docker/prometheus/alerts_test.yaml shows.
"""

import asyncio
from time import time

import pytest

from gaelp_tasks import app, cordons, counts, invoke_agent
from gaelp_tasks.cordons import Wish
from gaelp_tasks.errors import NodeFailed
from support.beat import BeatProcess
from support.claims import message, publish
from support.eventually import eventually
from support.exporter import Exporter
from support.needs import needs
from support.ports import free_port
from support.prometheus import ALERTS, API_ALERTS, Alertmanager, Prometheus, Receiver
from support.proxy import Proxy
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    needs("prometheus", "prometheus"),
    needs("prometheus-alertmanager", "prometheus-alertmanager"),
]

NOBODY = "http://127.0.0.1:9"  #: where no node listens
NO_SQL = "postgresql://gaelp@127.0.0.1:9/gaelp"
DEAF = "GaelpDeafWorker"
FLOOR = "floor@test"


@pytest.fixture
async def node():
    """Answers nothing, or breaks."""

    async def answer(request: Request, reply: Reply) -> None:
        if "fail" in request.json()["messages"][-1]["content"]:
            reply.whole({"error": "out of order"}, 500)
            return
        reply.head()
        reply.token("One")
        await reply.gone.wait()

    async with ScriptedServer() as server:
        server.on("/api/chat", answer)
        yield server


async def test_each_alert_is_raised_by_its_fault_and_somebody_is_told(start_worker, node, broker, tmp_path):
    await asyncio.to_thread(story, start_worker, node.url, broker, tmp_path)


def story(start_worker, node, broker, tmp_path):
    """In one thread: Celery's results belong to the thread that asked."""
    ports = free_port(), free_port()
    exporter = Exporter(tmp_path, broker.url)
    app.redis.flushdb()
    with (
        Receiver() as receiver,
        Proxy(broker.port) as way,
        Alertmanager(tmp_path, receiver.port) as manager,
        Prometheus(
            tmp_path,
            {"gaelp": [exporter.port], "gaelp-worker": ports, "gaelp-api": []},
            alertmanager=manager.port,
        ) as prometheus,
    ):

        def raised(*names):
            eventually(lambda: prometheus.firing().issuperset(names), within_s=40, what=str(names))

        raised("GaelpExporterMissing", "GaelpWorkerUnreachable")
        publish(
            *(message(str(number), gaelp_published_at=time() - 7200) for number in range(60)), queue="batch"
        )
        with exporter:
            raised("GaelpNobodyTakesWork", "GaelpQueueLong", "GaelpQueueWaitLong")
            with BeatProcess(tmp_path, GAELP_BROKER_URL=broker.url, GAELP_DATABASE_URL=NO_SQL) as beat:
                raised("GaelpSchedulesWait")
                beat.kill()
            raised("GaelpNoBeat")
            cordons.ask(app, FLOOR, Wish.CORDON)
            start_worker(
                name="floor",
                GAELP_OLLAMA_NODES=NOBODY,
                GAELP_METRICS_PORT=str(ports[0]),
                GAELP_OS_RESERVE="100TiB",
            )
            worker = start_worker(
                GAELP_BROKER_URL=f"redis://127.0.0.1:{way.port}/0",
                GAELP_OLLAMA_NODES=node,
                GAELP_METRICS_PORT=str(ports[1]),
                GAELP_RETRY_ATTEMPTS="1",
            )
            raised("GaelpMemoryUnderFloor", "GaelpNodeUnwell", "GaelpDeadLetters")
            eventually(lambda: prometheus.ask("sum(gaelp_invocations_total) == 0"), what="a first look")
            for _ in range(6):
                with pytest.raises(NodeFailed):
                    invoke_agent.delay("fail").get(timeout=30)
            next(invoke_agent.delay("wait").stream(timeout=30))
            counts.count(app, counts.EVICTED)
            raised("GaelpFailureRateHigh", "GaelpUseHigh", "GaelpEvictions", "GaelpNoProgress")
            eventually(lambda: "GaelpWorkerUnreachable" in receiver.heard("resolved"))
            broker.freeze()
            try:
                raised("GaelpRedisUnreachable", DEAF)
                assert DEAF not in receiver.heard("firing")  # it has the cause of one that is told
            finally:
                broker.thaw()
            eventually(lambda: "GaelpRedisUnreachable" in receiver.heard("resolved"))
            way.silence()
            raised(DEAF)
        worker.process.kill()
        eventually(lambda: receiver.heard("firing") >= ALERTS - API_ALERTS, what="everybody was told")
    assert receiver.heard("firing") == ALERTS - API_ALERTS
    for alert in receiver.told:
        assert set(alert["annotations"]) == {"summary", "action"}
        assert "<no value>" not in str(alert["annotations"])
