"""Workers that are told to end, and those that must end or mend themselves: in time, whatever hangs."""

import json
import signal
import time
from typing import Any

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.streams import Piece, parse
from gaelp_workers.leases import TOLD
from gaelp_workers.scripts import CLAIM
from support import stubborn
from support.eventually import eventually
from support.hole import Hole
from support.worker import GAELP, WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine]

ENDLESS = {"num_predict": 1_000_000}
LONG = {"num_predict": 2000, "seed": 5}  # seconds
SHORT = {"num_predict": 5, "seed": 5}
GRACE_S = 1.0
INCLUDE = ("--include", "support.stubborn")


def queued() -> list[Any]:
    """The messages in the lists of the queues, wherever the router put them."""
    keys = [key for key in app.redis.scan_iter(_type="list") if key.split(".")[0].startswith("interactive")]
    return [json.loads(text) for key in keys for text in app.redis.lrange(key, 0, -1)]


def ended(worker: WorkerProcess, number: signal.Signals, *, within_s: float) -> int:
    """Its exit status after this signal; it must come within that time."""
    asked = time.monotonic()
    worker.send(number)
    code = worker.wait(within_s=within_s + 10)
    took = time.monotonic() - asked
    assert took < within_s, f"it took {took:.2f} s:\n{worker.log()}"
    return code


def handed_back(task_id: str) -> None:
    """It waits in its queue as it came: held by nobody, no attempt spent."""
    [message] = queued()
    assert message["headers"]["id"] == task_id
    assert message["headers"]["retries"] == 0
    assert app.redis.hlen(app.keys.unacked) == 0


@pytest.mark.parametrize("task", ["stubborn.sleep", "deaf", "blocking"])
def test_work_that_ignores_its_stop_does_not_keep_the_process(start_worker, node, task):
    """A blocked thread, an agent that swallows its cancel, one that blocks the loop of all runs."""
    worker = start_worker(
        *INCLUDE, GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S=str(GRACE_S), **stubborn.SETTINGS
    )
    if task.startswith("stubborn"):
        handle = app.send_task(task, [60], queue="interactive")
        eventually(lambda: handle.state == "STARTED")
    else:
        sent = app.send_task("gaelp.invoke_agent", ["Go on"], {"agent": task}, queue="interactive")
        handle = invoke_agent.AsyncResult(sent.id)
        next(handle.stream(timeout=20))
    assert ended(worker, signal.SIGTERM, within_s=GRACE_S + 1) == 0
    assert "did not stop when they were asked to; they were given back" in worker.log()
    handed_back(handle.id)


def test_a_task_that_keeps_the_interpreter_does_not_keep_the_process(start_worker, node):
    """No thread of Python runs any more, so something else must end it."""
    worker = start_worker(*INCLUDE, GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S="3", **stubborn.SETTINGS)
    handle = app.send_task("stubborn.seize", [1, 30], queue="interactive")
    eventually(lambda: handle.state == "STARTED")
    assert ended(worker, signal.SIGTERM, within_s=3 + 1) == 1
    assert app.redis.hlen(app.keys.unacked) == 1, "its lease runs out by itself"


def test_a_hung_model_does_not_keep_the_process(start_worker, node):
    """Nothing has come of the answer yet when it is stopped."""
    with Hole(int(node.rsplit(":", 1)[1])) as hole:
        worker = start_worker(
            GAELP_OLLAMA_NODES=f"http://127.0.0.1:{hole.port}", GAELP_DRAIN_GRACE_S=str(GRACE_S)
        )
        handle = invoke_agent.delay("Never stop", options=ENDLESS)
        next(handle.stream(timeout=20))
        assert hole.hush(b"/api/chat")
        assert ended(worker, signal.SIGTERM, within_s=GRACE_S + 1) == 0
    handed_back(handle.id)


def test_a_frozen_redis_does_not_keep_the_process(start_worker, broker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S=str(GRACE_S))
    handle = invoke_agent.delay("A long story", options=LONG)
    next(handle.stream(timeout=20))
    broker.freeze()
    try:
        ended(worker, signal.SIGTERM, within_s=GRACE_S + 1)
    finally:
        broker.thaw()
    start_worker(GAELP_OLLAMA_NODES=node, name="second")
    result = handle.get(timeout=60)
    assert (result["stop_reason"], result["attempts"]) == ("length", 1)


def test_a_redis_that_is_away_does_not_keep_the_process(start_worker, broker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S=str(GRACE_S))
    broker.kill()
    try:
        eventually(lambda: "Cannot connect to" in worker.log())
        ended(worker, signal.SIGTERM, within_s=GRACE_S + 1)
    finally:
        broker.start()


def test_what_is_given_back_keeps_its_text_so_far(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S="0")
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    reader = handle.stream(timeout=20)
    first = "".join(next(reader) for _ in range(5))
    assert ended(worker, signal.SIGTERM, within_s=1) == 0
    handed_back(handle.id)
    entries: Any = app.redis.xrange(app.keys.stream(handle.id))
    events = [parse(*entry) for entry in entries]
    assert "".join(event.text for event in events if isinstance(event, Piece)).startswith(first)


@pytest.mark.parametrize("program", [GAELP, None])
def test_ctrl_c_drains_and_a_second_one_stops_at_once(start_worker, node, program):
    more = {"program": program} if program else {}
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S="60", **more)
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    reader = handle.stream(timeout=20)
    next(reader)
    worker.send(signal.SIGINT)
    eventually(lambda: "Ctrl-C again stops at once" in worker.log())
    eventually(lambda: {node.closed for node in worker.announced().values()} == {"stopping"})
    for _ in range(3):
        next(reader)  # it goes on meanwhile
    assert ended(worker, signal.SIGINT, within_s=1) == 130
    handed_back(handle.id)


def test_what_ends_while_it_drains_is_acknowledged_and_can_be_cancelled(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S="60")
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    next(handle.stream(timeout=20))
    waiting = invoke_agent.delay("Hi", options=SHORT)
    worker.send(signal.SIGTERM)
    eventually(lambda: "nothing new is taken" in worker.log())
    assert app.control.inspect([worker.name], timeout=5).ping(), "it still answers"
    handle.cancel()
    assert worker.wait(within_s=20) == 0
    assert handle.get(timeout=5)["stop_reason"] == "cancelled"
    handed_back(waiting.id)


def test_control_shutdown_drains_too(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_DRAIN_GRACE_S="30")
    handle = invoke_agent.delay("A long story", options=LONG)
    next(handle.stream(timeout=20))
    app.control.shutdown([worker.name])
    assert worker.wait(within_s=31) == 0
    assert handle.get(timeout=5)["stop_reason"] == "length"


def test_a_worker_that_has_lost_redis_for_long_ends_with_a_sentence(start_worker, broker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_BROKER_LOST_S="3")
    for _ in range(2):  # short losses do not add up
        broker.freeze()
        frozen = time.monotonic()
        eventually(lambda frozen=frozen: time.monotonic() - frozen > 2)
        broker.thaw()
        assert invoke_agent.delay("Hi", options=SHORT).get(timeout=20)
    broker.kill()
    try:
        assert worker.wait(within_s=10) == 1
    finally:
        broker.start()
    [sentence] = [line for line in worker.log().splitlines() if "GAELP_BROKER_LOST_S" in line]
    assert "has not answered for 3 s" in sentence
    # before that, Celery's gossip may stumble over a connection that is gone
    assert "Traceback" not in worker.log().partition(sentence)[2]


def test_a_worker_whose_claims_go_unanswered_connects_anew(start_worker, broker, node):
    """The connection is half open: nothing comes, no error either, while Redis answers everybody else."""
    with Hole(broker.port) as hole:
        worker = start_worker(
            GAELP_OLLAMA_NODES=node,
            GAELP_BROKER_URL=f"redis://127.0.0.1:{hole.port}/0",
            GAELP_DEAF_AFTER_S="2",
        )
        assert invoke_agent.delay("Hi", options=SHORT).get(timeout=20)
        assert hole.hush(CLAIM.sha.encode()) == 1
        asked = time.monotonic()
        assert invoke_agent.delay("Hi", options=SHORT).get(timeout=30)
        assert time.monotonic() - asked < 2 + 5
    assert "connecting anew" in worker.log()


def test_a_dead_doorbell_costs_no_more_than_a_poll(start_worker, broker, node):
    with Hole(broker.port) as hole:
        start_worker(GAELP_OLLAMA_NODES=node, GAELP_BROKER_URL=f"redis://127.0.0.1:{hole.port}/0")
        assert invoke_agent.delay("Hi", options=SHORT).get(timeout=20)
        assert hole.hush(TOLD.encode()) >= 1
        assert invoke_agent.delay("Hi", options=SHORT).get(timeout=5)


def test_a_hanging_loop_ends_the_worker(start_worker, broker, node):
    """Nothing mends a main thread that never comes back: a supervisor starts it anew."""
    worker = start_worker(*INCLUDE, GAELP_OLLAMA_NODES=node, GAELP_DEAF_AFTER_S="0.5", **stubborn.SETTINGS)
    eventually(app.control.inspect([worker.name], timeout=1).ping, what="it hears remote control by now")
    app.control.broadcast("stubborn_hang", destination=[worker.name])
    assert worker.wait(within_s=20) == 1
    assert "No claim was answered for 3 s" in worker.log()
