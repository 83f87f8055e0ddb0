"""One test for each private name of celery and kombu that our worker touches; both are pinned to a minor."""

from typing import Any

import pytest
from celery.backends.base import Backend
from celery.worker import state
from celery.worker.control import Panel
from celery.worker.request import Request
from kombu.transport.redis import Channel
from kombu.transport.redis import Transport as KombuTransport

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.overview import live_nodes
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine]

ENDLESS = {"num_predict": 1_000_000}


@pytest.fixture
def endless():
    """Start runs that go on until the test is over."""
    handles = []

    def start(count: int, **arguments: Any):
        new = [invoke_agent.delay("Never stop", options=ENDLESS, **arguments) for _ in range(count)]
        handles.extend(new)
        return new

    yield start
    for handle in handles:
        handle.cancel()
    for handle in handles:
        handle.get(timeout=30)


def running() -> int:
    return sum(len(node.running) for node in live_nodes(app))


def slots() -> int:
    return sum(node.slots for node in live_nodes(app))


def test_kombu_still_has_the_names_that_the_transport_touches():
    """What they do is tested in test_claim_faults.py."""
    assert Channel._in_poll is False
    assert Channel._brpop_sent_at is None
    for name in ("_brpop_start", "_brpop_read", "_q_for_pri", "active_queues", "priority_steps", "sep"):
        assert hasattr(Channel, name), name
    for name in ("can_consume", "restore_visible", "restore_unacked_once"):
        assert hasattr(Channel.QoS, name), name
    assert hasattr(KombuTransport, "_deliver")


def test_celery_still_has_the_names_that_revoking_and_canvas_touch():
    """What they do is tested in test_celery_features.py and test_remote_control.py."""
    assert {"revoke", "terminate", "revoke_by_stamped_headers", "autoscale"} <= Panel.data.keys()
    assert hasattr(Request, "_eta_timer_entry")
    assert hasattr(Request, "_already_revoked")
    assert Request.time_limits == (None, None), "set by the constructor, read as the task starts"
    assert {"requests", "scheduled_requests", "active_requests", "revoked", "revoked_stamps"} <= vars(
        state
    ).keys()
    assert callable(Backend._fail_chain)
    assert callable(Backend.on_chord_part_return)


def test_the_configuration_can_be_looked_at(worker):
    """A function among task_routes is nothing that JSON knows."""
    look = app.control.inspect([worker.name], timeout=5)
    conf = eventually(look.conf, what="an answer, however busy the machine")[worker.name]
    assert conf["task_default_queue"] == "interactive"


def test_the_gate_follows_the_limit_while_tasks_run(worker, endless):
    """Private: QoS.can_consume, Channel._in_poll; public: pool_grow and pool_shrink."""
    endless(7)
    eventually(lambda: running() == 4, what="four slots, four runs")
    app.control.pool_grow(2, reply=True, limit=1, timeout=30)
    eventually(lambda: running() == 6, what="two more slots, two more runs")
    app.control.pool_shrink(4, reply=True, limit=1, timeout=30)
    eventually(lambda: slots() == 2, what="the limit is two")
    assert running() == 6, "running work is left alone"
    app.control.pool_grow(2, reply=True, limit=1, timeout=30)


def test_a_closed_gate_takes_nothing_and_strands_nothing(worker):
    """A message published while a claim is under way is run or left in the queue, never kept in a buffer."""
    app.control.pool_shrink(4, reply=True, limit=1, timeout=30)
    eventually(lambda: slots() == 0)
    handles = [invoke_agent.delay("Hi", options={"num_predict": 1}) for _ in range(5)]
    app.control.pool_grow(4, reply=True, limit=1, timeout=30)
    assert all(handle.get(timeout=20)["usage"]["completion_tokens"] == 1 for handle in handles)


def test_celery_uses_our_request_class_for_our_tasks(worker):
    """Private: task.Request, _argsrepr, _kwargsrepr, _request_dict."""
    handle = app.send_task(
        "gaelp.invoke_agent", ["a secret"], {"options": ENDLESS}, queue="interactive", argsrepr="['a secret']"
    )
    ours = invoke_agent.AsyncResult(handle.id)
    next(ours.stream(timeout=20))
    active = app.control.inspect([worker.name], timeout=5).active()
    ours.cancel()
    [told] = [task for task in active[worker.name] if task["id"] == handle.id]
    assert "secret" not in repr(told)
    assert told["name"] == "gaelp.invoke_agent"
    ours.get(timeout=10)


def test_inspect_tells_the_truth_about_the_pool(worker):
    """Private: BasePool._get_info."""
    stats = app.control.inspect([worker.name], timeout=5).stats()[worker.name]
    assert stats["pool"]["max-concurrency"] == 4
    assert stats["pool"]["implementation"] == "gaelp_workers.pool:TaskPool"


def test_errands_are_not_counted_among_the_runs(worker):
    """Whatever the system queue brings takes no slot; Celery's stats and the node's snapshot say so."""
    ours = invoke_agent.AsyncResult(
        app.send_task("gaelp.invoke_agent", ["errand"], {"options": ENDLESS}, queue="system").id
    )
    taken = invoke_agent.delay("run", options=ENDLESS)
    try:
        next(ours.stream(timeout=20))
        next(taken.stream(timeout=20))
        eventually(lambda: [node.running for node in live_nodes(app)] == [(taken.id,)])
        stats = app.control.inspect([worker.name], timeout=5).stats()[worker.name]
        assert stats["pool"]["running"] == 1
    finally:
        ours.cancel()
        taken.cancel()
    assert ours.get(timeout=10)["stop_reason"] == "cancelled"
    taken.get(timeout=10)
