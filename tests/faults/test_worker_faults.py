"""Workers that are stopped, killed or cut off in mid-stream: nothing accepted is lost."""

import signal
import time

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.errors import StreamRestarted
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine]

ENDLESS = {"num_predict": 1_000_000}
LONG = {"num_predict": 2000, "seed": 5}  # seconds
SHORT = {"num_predict": 20, "seed": 5}


def test_sigterm_lets_running_work_finish_within_the_grace(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S="30")
    handle = invoke_agent.delay("A long story", options=LONG)
    next(handle.stream(timeout=20))
    worker.send(signal.SIGTERM)
    assert worker.wait(within_s=31) == 0
    assert handle.get(timeout=5)["stop_reason"] == "length"


def test_sigterm_gives_back_what_does_not_finish_and_exits_in_time(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S="1", GAELP_NUM_PARALLEL="2")
    running = [invoke_agent.delay("Never stop", options=ENDLESS) for _ in range(2)]
    queued = invoke_agent.delay("Hi", options=SHORT)
    for handle in running:
        next(handle.stream(timeout=20))
    asked = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait(within_s=20) == 0
    assert time.monotonic() - asked < 1 + 1, "grace, then the hand-back"
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="4", name="second")
    assert queued.get(timeout=30)["attempts"] == 1
    for handle in running:
        eventually(
            lambda handle=handle: app.redis.get(app.keys.claims(handle.id)) == "2", what="started again"
        )
        handle.cancel()
        result = handle.get(timeout=20)
        assert result["stop_reason"] == "cancelled"
        assert result["attempts"] == 1, "a shutdown spends no attempt"


def test_a_killed_workers_run_is_done_by_another(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_LEASE_TTL_S="2")
    handle = invoke_agent.delay("A long story", options=LONG)
    reader = handle.stream(timeout=60)
    next(reader)
    worker.send(signal.SIGKILL)
    worker.wait(within_s=5)
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_LEASE_TTL_S="2", name="second")
    with pytest.raises(StreamRestarted):
        for _ in reader:
            pass
    result = handle.get(timeout=60)
    assert result["stop_reason"] == "length"
    assert "".join(handle.stream(timeout=10)) == result["text"]


def test_a_cancel_while_no_worker_lives_is_remembered(start_worker, node):
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    handle.cancel()
    start_worker(GAELP_OLLAMA_NODES=node)
    result = handle.get(timeout=20)
    assert (result["stop_reason"], result["text"], result["model"]) == ("cancelled", "", "")


def test_a_frozen_redis_leaves_no_gap_in_the_stream(start_worker, broker, node):
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_LEASE_TTL_S="20")  # or its worker would stop it half-way
    handle = invoke_agent.delay("A long story", options=LONG)
    reader = handle.stream(timeout=60)
    pieces = [next(reader)]
    broker.freeze()
    frozen = time.monotonic()
    eventually(lambda: time.monotonic() - frozen > 3)
    broker.thaw()
    pieces.extend(reader)
    assert "".join(pieces) == handle.get(timeout=20)["text"]
