"""Workers come and go under load: nothing is lost, no attempt is spent, and what scales them sees it."""

import asyncio
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.metrics.cluster import Seen, samples
from gaelp_tasks.metrics.series import Names
from gaelp_tasks.survey import Survey
from support.eventually import eventually
from support.patient_node import PatientNode, ends
from support.scripted_server import CHAT_MODEL

pytestmark = [pytest.mark.redis, pytest.mark.slow]

SLOTS = 2
CALLS = 10


@pytest.fixture
async def nodes():
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(PatientNode()) for _ in range(5)]


def figures():
    """Depth, running and slots of the model, as the cluster's page tells them now."""
    told = {
        (one.name, one.labels): one.value for one in samples(Seen(True, Survey(app).take(), 0.0), Names(100))
    }
    place = "batch", CHAT_MODEL
    slots = sum(
        value
        for (name, labels), value in told.items()
        if name == "gaelp_slots" and labels[1:] in {(CHAT_MODEL, "busy"), (CHAT_MODEL, "free")}
    )
    return told["gaelp_queue_depth", place], told["gaelp_running", place], slots


async def test_three_workers_become_one_and_three_again_under_load(start_worker, nodes):
    await asyncio.to_thread(story, start_worker, nodes)


def story(start_worker, nodes):
    """In one thread: Celery's results belong to the thread that asked."""

    def start(number):
        return start_worker(
            name=f"w{number}",
            GAELP_OLLAMA_NODES=nodes[number].url,
            GAELP_NUM_PARALLEL=str(SLOTS),
            GAELP_DRAIN_GRACE_S="0.5",
        )

    def seen(*wanted):
        eventually(lambda: figures() == wanted, within_s=30, what=f"{wanted}, not {figures()}")

    with ThreadPoolExecutor(3) as pool:
        stopped, drained, _ = pool.map(start, range(3))
        calls = [invoke_agent.delay("hi", tier="batch", model=CHAT_MODEL) for _ in range(CALLS)]
        seen(CALLS - 3 * SLOTS, 3 * SLOTS, 3 * SLOTS)

        stopped.send(signal.SIGTERM)  # busy, as compose and Kubernetes do
        drain(drained.name)
        drained.send(signal.SIGTERM)  # idle
        assert [worker.wait(within_s=20) for worker in (stopped, drained)] == [0, 0]
        seen(CALLS - SLOTS, SLOTS, SLOTS)

        list(pool.map(start, (3, 4)))
        seen(CALLS - 3 * SLOTS, 3 * SLOTS, 3 * SLOTS)
    for node in nodes:
        node.go_on()
    for call in calls:
        result = call.get(timeout=60)
        assert (result["stop_reason"], result["attempts"], ends(call.id)) == ("stop", 1, 1)
    seen(0, 0, 3 * SLOTS)


def drain(worker):
    done = subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", "nodes", "drain", worker, "--grace", "0.5"],
        env=os.environ | {"GAELP_BROKER_URL": app.settings.broker_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
