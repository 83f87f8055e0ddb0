"""The order of queues, on a worker of its own."""

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.overview import describe
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine]

ENDLESS = {"num_predict": 1_000_000}


def test_the_order_of_tiers_survives_cancel_and_add_consumer(start_worker, broker, node):
    """kombu's own `priority` order puts a queue that was added again last."""
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="1", name="ordered")
    to_it = {"destination": [worker.name], "reply": True}
    app.control.cancel_consumer("interactive", **to_it)
    app.control.add_consumer("interactive", **to_it)
    blocker = invoke_agent.delay("Never stop", options=ENDLESS)
    eventually(lambda: worker.runs(blocker.id))
    once = {"num_predict": 1}
    low = [invoke_agent.delay("low", tier="background", options=once) for _ in range(3)]
    middle = [invoke_agent.delay("middle", tier="batch", options=once) for _ in range(3)]
    high = [invoke_agent.delay("high", options=once) for _ in range(3)]
    blocker.cancel()
    results = [handle.get(timeout=30) for handle in high + middle + low]
    started = [describe(app, result["id"]).start["at"] for result in results]
    assert started == sorted(started)
