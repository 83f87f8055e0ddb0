"""A cancel that nobody could hear when it was asked for stops the run all the same, and keeps its text."""

import signal
import time

import pytest

from gaelp_tasks import app, invoke_agent
from support.eventually import eventually
from support.model_server import CHAT_MODEL, ROOMY, ModelServer, slow_model
from support.proxy import Proxy

pytestmark = [pytest.mark.redis, pytest.mark.engine]

ENDLESS = {"num_predict": 1_000_000}
LEASE_S = "60"  #: longer than the outage: the worker keeps what it runs
WITHIN_S = 3.0  #: a poll of 0.2 s, the settlement, and a machine that others use too


def begun(**asked):
    """A run that has told something already."""
    handle = invoke_agent.delay("Never stop", options=ENDLESS, **asked)
    next(handle.stream(timeout=60))
    return handle


def text_of(handle):
    return "".join(fields.get("t", "") for _, fields in app.redis.xrange(app.keys.stream(handle.id)))


def settled(handle, since):
    result = handle.get(timeout=30)
    assert time.monotonic() - since < WITHIN_S
    assert result["stop_reason"] == "cancelled"
    assert result["text"], "the partial text is kept"
    assert result["text"] == text_of(handle)


def test_a_frozen_worker_stops_what_was_cancelled_as_it_wakes(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_LEASE_TTL_S=LEASE_S, GAELP_MAX_OUTPUT_BYTES="1GiB")
    handle = begun()
    worker.send(signal.SIGSTOP)
    handle.cancel()
    frozen = time.monotonic()
    eventually(lambda: time.monotonic() - frozen > 1, what="several polls have passed")
    worker.send(signal.SIGCONT)
    settled(handle, time.monotonic())


def test_a_worker_that_was_cut_off_stops_what_was_cancelled_as_it_returns(start_worker, broker, tmp_path):
    slow = {CHAT_MODEL: slow_model(tmp_path)}  # or its context would be full before the worker returns
    with (
        ModelServer(tmp_path, models=slow, num_parallel=2, num_ctx=ROOMY) as node,
        Proxy(broker.port) as proxy,
    ):
        url = broker.url.replace(str(broker.port), str(proxy.port))
        worker = start_worker(
            GAELP_OLLAMA_NODES=node.url,
            GAELP_LEASE_TTL_S=LEASE_S,
            GAELP_NUM_PARALLEL="2",
            GAELP_BROKER_URL=url,
            GAELP_MAX_OUTPUT_BYTES="1GiB",
        )
        handle, other = begun(), begun(tenant="other")
        proxy.silence()
        eventually(lambda: not worker.announced(), what="its snapshot has ended", within_s=30)
        handle.cancel()
        proxy.reset()  # a silent connection breaks in the end: what was called out meanwhile is gone
        settled(handle, time.monotonic())
        assert worker.runs(other.id), "nothing else was stopped"
        other.cancel()
        other.get(timeout=30)
