"""Beat sweeps while no worker lives, and one that was frozen takes nothing from those that do.

`pytest tests/faults/test_beat_sweeps.py --long -s`: frozen for 10 s, published within 1 s, and the delays.
"""

import asyncio
import json
import signal
from time import monotonic, time

import pytest

from gaelp_beat.sweeper import CONNECTION
from gaelp_tasks import app, counts, invoke_agent
from gaelp_tasks.queues import plain
from gaelp_tasks.survey import Survey
from support.beat import BeatProcess
from support.eventually import eventually
from support.patient_node import PatientNode, ends
from support.scripted_server import CHAT_MODEL

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LEASE_S = 5.0  # the default
TIER = "batch"


@pytest.fixture
async def node():
    async with PatientNode() as server:
        yield server


async def test_without_any_worker_beat_publishes_what_is_due_and_gives_back_what_the_dead_held(
    request, start_worker, node, broker, tmp_path
):
    late_s = 1.0 if request.config.getoption("--long") else 3.0
    await asyncio.to_thread(forsaken, start_worker, node, broker, tmp_path, late_s)


def forsaken(start_worker, node, broker, tmp_path, late_s):
    """In one thread: Celery's results belong to the thread that asked."""
    settings = {"GAELP_OLLAMA_NODES": node.url, "GAELP_NUM_PARALLEL": "2"}
    worker = start_worker(**settings)
    with BeatProcess(tmp_path, GAELP_BROKER_URL=broker.url):
        running = invoke_agent.delay("hi", tier=TIER, model=CHAT_MODEL)
        later = invoke_agent.apply_async(("hi",), {"tier": TIER, "model": CHAT_MODEL}, countdown=5)
        assert next(running.stream(timeout=20)) == "One"
        [(_, due_ms)] = eventually(lambda: app.redis.zrange(app.keys.parked, 0, -1, withscores=True))
        killed = time()
        worker.send(signal.SIGKILL)
        worker.wait(within_s=5)
        eventually(lambda: running.id in queued(), within_s=LEASE_S + 2)
        back = time()
        eventually(lambda: later.id in queued())
        published = time()
        took_s, after_s = back - killed, published - due_ms / 1000
        print(f"Back after {took_s:.2f} s; published {after_s:.2f} s late.")  # noqa: T201  of the long form
        assert 0 <= after_s < late_s
        eventually(sees_two_waiting, what="what the dead worker announced is gone")
        eventually(lambda: counts.counted(app) == {counts.REAPED: 1})
        node.go_on()
        start_worker(name="second", **settings)
        for handle in (running, later):
            result = handle.get(timeout=30)
            assert (result["stop_reason"], result["attempts"], ends(handle.id)) == ("stop", 1, 1)
        eventually(lambda: not app.redis.exists(app.keys.unacked, app.keys.parked))


def queued():
    """Ids of what waits in the tier."""
    names = app.redis.scan_iter(f"{TIER}*", _type="list")
    return {json.loads(text)["headers"]["id"] for name in names for text in app.redis.lrange(name, 0, -1)}


def sees_two_waiting():
    """Whether what scales by metrics sees them; while nobody announces the model, its name is its queue's."""
    load = Survey(app).take().loads.get((TIER, plain(CHAT_MODEL)))
    return load is not None and (load.queued, load.running) == (2, 0)


async def test_a_beat_that_was_frozen_takes_nothing_from_who_lives(
    request, start_worker, node, broker, tmp_path
):
    frozen_s = 10.0 if request.config.getoption("--long") else 3.0
    await asyncio.to_thread(frozen, start_worker, node, broker, tmp_path, frozen_s)


def frozen(start_worker, node, broker, tmp_path, frozen_s):
    """Its picture of the leases is older than a lease when it wakes up."""
    lease = {"GAELP_BROKER_URL": broker.url, "GAELP_LEASE_TTL_S": "1"}
    start_worker(GAELP_OLLAMA_NODES=node.url, **lease)
    with BeatProcess(tmp_path, **lease) as beat:
        handle = invoke_agent.delay("hi", tier=TIER, model=CHAT_MODEL)
        assert next(handle.stream(timeout=20)) == "One"
        eventually(lambda: idle_s() == 0, what="it sweeps")
        beat.process.send_signal(signal.SIGSTOP)
        passes(frozen_s)
        assert idle_s() >= frozen_s - 2
        beat.process.send_signal(signal.SIGCONT)
        passes(2.0)  # four looks for the dead
        eventually(lambda: idle_s() == 0, what="it sweeps again")
        assert app.redis.get(app.keys.claims(handle.id)) == "1"
        # of its own schedule it may have published something meanwhile
        assert counts.counted(app).keys() <= {counts.SCHEDULED, counts.LATE_MS}
        node.go_on()
        assert handle.get(timeout=30)["text"] == "One two"
        assert len(node.asked("/api/chat")) == 1


def passes(seconds):
    until = monotonic() + seconds
    eventually(lambda: monotonic() > until)


def idle_s():
    """Whole seconds since beat's sweep has said anything to Redis; None where it is not connected."""
    return next((int(one["idle"]) for one in app.redis.client_list() if one["name"] == CONNECTION), None)
