"""The claim under fault: junk, cut connections, frozen and killed workers, a Redis that restarts."""

import base64
import json
import signal
import time
from typing import Any

import pytest

from gaelp_tasks import app, counts, dead_letters, invoke_agent
from gaelp_tasks.streams import End, parse
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine]

ENDLESS = {"num_predict": 1_000_000}
LONG = {"num_predict": 2000, "seed": 5}  # seconds
SHORT = {"num_predict": 5, "seed": 5}


def claims(handle) -> int:
    return int(app.redis.get(app.keys.claims(handle.id)) or 0)


def ends(handle) -> list[Any]:
    found: Any = app.redis.xrange(app.keys.stream(handle.id))
    return [event for event in (parse(*entry) for entry in found) if isinstance(event, End)]


def test_a_cut_connection_runs_nothing_twice(start_worker, node):
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="2")
    handles = [invoke_agent.delay("A long story", options=LONG) for _ in range(2)]
    for handle in handles:
        next(handle.stream(timeout=20))
    app.redis.client_kill_filter(_type="normal", skipme=True)
    app.redis.client_kill_filter(_type="pubsub", skipme=True)
    for handle in handles:
        assert handle.get(timeout=60)["stop_reason"] == "length"
        assert claims(handle) == 1
    eventually(lambda: not app.redis.hlen(app.keys.unacked), what="acknowledged over a new connection")


def test_a_frozen_workers_run_goes_to_another_and_its_own_end_is_refused(start_worker, node):
    frozen = start_worker(GAELP_OLLAMA_NODES=node, GAELP_LEASE_TTL_S="1")
    handle = invoke_agent.delay("A long story", options=LONG)
    next(handle.stream(timeout=20))
    frozen.send(signal.SIGSTOP)
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_LEASE_TTL_S="1", name="second")
    eventually(lambda: app.redis.xrange(handle._stream_key, "2-0", "2-0"), within_s=10, what="a second start")
    frozen.send(signal.SIGCONT)
    result = handle.get(timeout=60)
    assert result["stop_reason"] == "length"
    eventually(lambda: not app.redis.hlen(app.keys.unacked) and not frozen.runs(handle.id))
    assert [end.claim for end in ends(handle)] == [2]
    assert counts.counted(app)[counts.FENCED] == 1
    assert handle.result == result


def test_a_killed_workers_run_starts_again_as_soon_as_its_connection_is_missed(start_worker, node):
    workers = [start_worker(GAELP_OLLAMA_NODES=node, name=name) for name in ("one", "two")]
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    next(handle.stream(timeout=20))
    holder = eventually(lambda: next((worker for worker in workers if worker.runs(handle.id)), None))
    begun = time.monotonic()
    eventually(lambda: time.monotonic() - begun > 1.0, what="the other worker has seen it alive")
    holder.send(signal.SIGKILL)
    # three looks of the other worker, half a second apart; the lease itself lasts five seconds
    eventually(lambda: claims(handle) == 2, within_s=4.5, what="started again")
    handle.cancel()
    assert handle.get(timeout=20)["stop_reason"] == "cancelled"


def test_what_is_not_due_waits_in_redis_and_not_in_the_worker(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node)
    handles = [invoke_agent.apply_async(["Hi"], {"options": SHORT}, countdown=3600) for _ in range(200)]
    eventually(lambda: app.redis.zcard(app.keys.parked) == 200)
    assert app.control.inspect([worker.name], timeout=5).scheduled()[worker.name] == []
    soon = invoke_agent.apply_async(["Hi"], {"options": SHORT}, countdown=1)
    handles[7].cancel()
    assert handles[7].get(timeout=10)["stop_reason"] == "cancelled"
    assert soon.get(timeout=20)["stop_reason"] == "length"
    assert app.redis.zcard(app.keys.parked) == 199


def test_a_worker_survives_a_redis_that_restarts_and_forgets_its_scripts(start_worker, broker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node)
    app.redis.script_flush()
    assert invoke_agent.delay("Hi", options=SHORT).get(timeout=20)["stop_reason"] == "length"
    app.redis.client_kill_filter(_type="normal", skipme=True)
    app.redis.script_flush()
    assert invoke_agent.delay("Hi", options=SHORT).get(timeout=20)["stop_reason"] == "length"
    assert worker.process.poll() is None


def test_a_bomb_is_refused_unread(start_worker, node):
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_MAX_MESSAGE_BYTES="4000")
    headers = {"id": "1", "task": "gaelp.invoke_agent", "compression": "zlib"}
    bomb = {"body": "x" * 600_000, "headers": headers, "properties": {"delivery_info": {}}}
    app.redis.lpush("interactive", json.dumps(bomb))
    eventually(lambda: dead_letters.count(app) == 1)
    assert next(dead_letters.listed(app, most=1)).reason == "oversized"
    assert invoke_agent.delay("Hi", options=SHORT).get(timeout=20)["stop_reason"] == "length"


def test_a_message_that_celery_cannot_run_takes_no_slot(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node)
    invoke_agent.apply_async(["Hi"], {"options": SHORT}, queue="elsewhere")
    queued: Any = app.redis.lrange("elsewhere", 0, -1)
    good = json.loads(queued[0])
    for body in ([1, 2, 3], {"a": 1, "b": 2, "c": 3}, [[], {}, 5], "x", None):
        bad = good | {"body": base64.b64encode(json.dumps(body).encode()).decode()}
        app.redis.lpush("interactive", json.dumps(bad))
    for shadow in (["a"], {"a": 1}, 5):
        app.redis.lpush("interactive", json.dumps(good | {"headers": good["headers"] | {"shadow": shadow}}))
    assert invoke_agent.delay("Hi", options=SHORT).get(timeout=30)["stop_reason"] == "length"
    eventually(lambda: not app.redis.hlen(app.keys.unacked), within_s=20)
    assert worker.process.poll() is None


def test_workers_that_mingle_hear_each_other(start_worker, node):
    first = start_worker(GAELP_OLLAMA_NODES=node, name="one", mingle=True)
    second = start_worker(GAELP_OLLAMA_NODES=node, name="two", mingle=True)
    assert "mingle: sync with 1 nodes" in second.log()
    assert dead_letters.count(app) == 0
    assert invoke_agent.delay("Hi", options=SHORT).get(timeout=30)["stop_reason"] == "length"
    assert first.process.poll() is None
