"""Metrics of a real worker and of the cluster, after what was done is known: names, labels and values."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, time

import pytest

from gaelp_tasks import app, counts, embed, invoke_agent
from gaelp_tasks.errors import NodeFailed
from gaelp_tasks.metrics.series import CLUSTER, WORKER
from gaelp_tasks.survey import Survey
from support.claims import claim, holder, message, publish
from support.elsewhere import elsewhere
from support.eventually import eventually
from support.exporter import SCRAPE_S, Exporter, at, scrape
from support.ports import free_port
from support.redis_server import RedisServer, redis_7_binary
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis, pytest.mark.slow]

TENANT = "acme-and-sons"
WORD = "pomegranate"  #: of every prompt
MODEL = "tiny:latest"
QUICK = {"GAELP_RETRY_BASE_S": "0.05", "GAELP_RETRY_ATTEMPTS": "2", "GAELP_DEFAULT_MODEL": MODEL}
#: of the exporter's, what has no figure before the control plane tells it
EMPTY = {"agent_jobs_total", "agent_job_duration_seconds", "agent_resource_usage"}


@pytest.fixture
async def node():
    """Answers, but for prompts that ask for less."""

    async def answer(request: Request, reply: Reply) -> None:
        said = request.json()["messages"][-1]["content"]
        if "fail" in said:
            reply.whole({"error": "out of order"}, 500)
            return
        reply.head()
        reply.token("One")
        if "wait" in said:
            await reply.gone.wait()
            return
        reply.token(" two")
        reply.last(prompt_eval_count=7, eval_count=2)
        reply.end()

    async with ScriptedServer() as server:
        server.on("/api/chat", answer)
        yield server


async def test_what_was_done_is_what_is_told(start_worker, node, broker, tmp_path):
    await asyncio.to_thread(story, start_worker, node.url, broker, tmp_path)


def story(start_worker, node, broker, tmp_path):
    """In one thread: Celery's results belong to the thread that asked."""
    port = free_port()
    worker = start_worker(
        GAELP_OLLAMA_NODES=node,
        GAELP_METRICS_PORT=str(port),
        GAELP_NUM_PARALLEL="1",
        GAELP_OS_RESERVE="64MiB",
        **QUICK,
    )
    endless, waiting = play()
    with Exporter(tmp_path, broker.url) as exporter:
        page = exporter.page()
        the_cluster_is_told(page, node)
        endless.cancel()
        assert endless.get(timeout=30)["stop_reason"] == "cancelled"
        for handle in waiting:
            handle.get(timeout=30)
        own = eventually(lambda: ended(scrape(port), 7), what="the worker has counted every end")
        the_worker_is_told(own, node)
        for told in (page, own, exporter.page()):
            assert TENANT not in str(told)
            assert WORD not in str(told)
        a_frozen_redis_holds_nobody_up(broker, exporter, port)
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait(10) == 0
    worker.send(signal.SIGTERM)
    assert worker.wait(within_s=20) == 0


def play():
    """What is known to happen; gives who runs on and who waits behind it."""
    for tier in ("interactive", "batch"):
        invoke_agent.delay(WORD, tier=tier, tenant=TENANT).get(timeout=30)
    embed.delay(["a", "b"], tier="batch").get(timeout=30)
    with pytest.raises(NodeFailed):
        invoke_agent.delay("fail", tier="batch", agent="coding").get(timeout=30)
    endless = invoke_agent.delay("wait", tier="interactive")
    next(endless.stream(timeout=20))
    waiting = [invoke_agent.delay(WORD, tier="background", model=MODEL) for _ in range(2)]
    publish("junk that no worker can read")
    publish(message("forsaken"), queue="elsewhere")
    claim(holder("dead", ttl_s=0.05), queues=("elsewhere",))
    counts.count(app, counts.EVICTED, 3)
    app.redis.set(app.keys.beat_read, int(time() * 1000) - 7000)  # as a beat that leads does
    eventually(lambda: counts.counted(app).get(counts.REAPED), what="the worker swept what was forsaken")
    eventually(lambda: app.redis.zcard(app.keys.dead), what="the worker put the junk aside")
    return endless, waiting


def the_cluster_is_told(page, node):
    """Every metric of the exporter, with what has been played."""
    assert names(page, CLUSTER) == {series.name for series in CLUSTER} - EMPTY
    assert page[at("gaelp_queue_depth", tier="background", model=MODEL)] == 2
    assert page[at("gaelp_queue_depth", tier="interactive", model=MODEL)] == 0
    assert 0 < page[at("gaelp_queue_oldest_seconds", tier="background", model=MODEL)] < 60
    assert page[at("gaelp_running", tier="interactive", model="any")] == 1
    assert page[at("gaelp_slots", node=node, model=MODEL, state="busy")] == 1
    assert page[at("gaelp_slots", node=node, model=MODEL, state="free")] == 0
    total, free = (page[at("gaelp_memory_bytes", node=node, kind=kind)] for kind in ("total", "free"))
    assert 0 < free <= total
    assert (page[at("gaelp_node_healthy", node=node)], page[at("gaelp_node_open", node=node)]) == (1, 1)
    assert page[at("gaelp_held")] == 1
    assert page[at("gaelp_dead_letters")] == 1
    assert page[at("gaelp_evictions_total", reason="memory")] == 3
    assert page[at("gaelp_reaped_total")] == 1
    assert 7 <= page[at("gaelp_schedules_age_seconds")] < 60
    assert page[at("gaelp_scheduled_runs_total")] == 0
    assert page[at("gaelp_history_waiting")] == 4, "of each that has ended, since nobody takes them away"
    assert page[at("gaelp_redis_up")] == 1
    assert page[at("cluster_resource_usage", resource="slots")] == 1.0


def the_worker_is_told(own, node):
    """Every metric of a worker, with what has been played."""
    assert names(own, WORKER) == {series.name for series in WORKER}
    outcomes = {
        tuple(dict(labels)[name] for name in ("tier", "agent", "outcome")): value
        for (name, labels), value in own.items()
        if name == "gaelp_invocations_total" and value
    }
    assert outcomes == {
        ("interactive", "chat", "done"): 1,
        ("interactive", "chat", "cut"): 1,
        ("batch", "chat", "done"): 1,
        ("batch", "embed", "done"): 1,
        ("batch", "coding", "failed"): 1,
        ("background", "chat", "done"): 2,
    }
    assert own[at("gaelp_retries_total")] == 1
    assert own[at("gaelp_tokens_total", model=MODEL, kind="prompt")] == 4 * 7
    assert own[at("gaelp_tokens_total", model=MODEL, kind="completion")] >= 4 * 2
    assert own[at("gaelp_queue_wait_seconds_count", tier="batch")] == 2, "of results alone"
    assert own[at("gaelp_first_token_seconds_count", tier="background")] == 2
    assert own[at("gaelp_run_seconds_count", tier="interactive")] == 2
    assert own[at("gaelp_memory_bytes", node=node, kind="reserve")] == 64 * 1024**2
    assert own[at("gaelp_worker_runs")] == 0
    assert (own[at("gaelp_worker_open")], own[at("gaelp_claims_wanted")]) == (1, 1)
    assert own[at("gaelp_claim_age_seconds")] < 5


def a_frozen_redis_holds_nobody_up(broker, exporter, port):
    """Both pages go on; one says that Redis is away, the other how long nobody has answered its worker."""
    broker.freeze()
    try:
        began = monotonic()
        eventually(lambda: exporter.page()[at("gaelp_redis_up")] == 0)
        assert exporter.page()[at("gaelp_dead_letters")] == 1, "what was known last"
        eventually(lambda: scrape(port)[at("gaelp_claim_age_seconds")] > 1)
        assert scrape(port)[at("gaelp_retries_total")] == 1
        assert monotonic() - began < 3 * SCRAPE_S
    finally:
        broker.thaw()
    eventually(lambda: exporter.page()[at("gaelp_redis_up")] == 1)


def names(page, those):
    """Which of these metrics have a figure on a page."""
    there = {name for name, _ in page}
    return {series.name for series in those if {series.name, f"{series.name}_count"} & there}


def ended(page, number):
    """The page once so many have ended, None before."""
    ends = sum(value for (name, _), value in page.items() if name == "gaelp_invocations_total")
    assert ends <= number
    return page if ends == number else None


def gaelp_metrics(*words, **settings):
    return subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", "metrics", *words],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_page_can_be_printed_and_says_where_redis_is_away():
    with RedisServer() as server:
        page = gaelp_metrics("--once", GAELP_BROKER_URL=server.url)
        assert (page.returncode, page.stderr) == (0, "")
        assert 'gaelp_queue_depth{model="inbox",tier="interactive"} 0.0' in page.stdout
        url = server.url
    page = gaelp_metrics("--once", GAELP_BROKER_URL=url)
    assert page.returncode == 1
    assert "gaelp_redis_up 0.0" in page.stdout
    assert "Traceback" not in page.stderr


def test_the_exporter_needs_no_more_than_its_user_in_the_docs():
    page = (Path(__file__).parents[2] / "docs/redis.md").read_text()
    [line] = re.findall(r"(?m)^ACL SETUSER metrics .*$", page)
    with RedisServer(redis_7_binary()) as server, server.client() as admin:
        admin.execute_command(*line.split())
        admin.lpush("batch.m", message("a", gaelp_published_at=1.0))
        admin.sadd("gaelp:queues", "batch.m")
        with elsewhere(f"redis://metrics:change-me@127.0.0.1:{server.port}/0") as place:
            found = Survey(place.app).take()
        harmless = {"command", "client"}  # redis-py tells its name in vain
        refused = {entry["object"].partition("|")[0] for entry in admin.acl_log()} - harmless
    assert found.loads["batch", "m"].queued == 1
    assert found.loads["batch", "m"].oldest_s > 1e6
    assert not refused


def test_a_port_in_use_is_one_sentence():
    with RedisServer() as server:
        page = gaelp_metrics(
            GAELP_BROKER_URL=server.url, GAELP_METRICS_ADDRESS=f"127.0.0.1:{server.port}", COLUMNS="300"
        )
    assert page.returncode == 1
    assert "GAELP_METRICS_ADDRESS" in page.stderr
    assert "Traceback" not in page.stderr


def test_a_worker_whose_port_is_taken_works_without_a_page(start_worker, broker):
    worker = start_worker(GAELP_OLLAMA_NODES="http://127.0.0.1:9", GAELP_METRICS_PORT=str(broker.port))
    eventually(lambda: "another GAELP_METRICS_PORT" in worker.log())
    assert worker.process.poll() is None
