"""Lower tiers have their turn while higher ones keep a real worker busy."""

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.overview import describe
from gaelp_tasks.queues import lists
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

ENDLESS = {"num_predict": 1_000_000}
A_WHILE = {"num_predict": 100}


def waits(queue: str) -> int:
    return sum(app.redis.llen(name) for name in lists(queue))


def started(handle) -> float:
    return describe(app, handle.id).start["at"]


def test_of_two_slots_a_background_run_gets_one_before_all_interactive_calls_are_done(start_worker, node):
    high = [invoke_agent.delay("high", options=A_WHILE) for _ in range(60)]
    low = invoke_agent.delay("low", tier="background", options=A_WHILE)
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="2")
    low.get(timeout=60)
    assert waits("interactive.any"), "the higher tier is still served"
    for handle in high:
        handle.cancel()
    for handle in high:
        handle.get(timeout=60)


def test_what_has_waited_its_maximum_has_the_only_slot_next_and_keeps_it(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="1", GAELP_MAX_WAIT_S="1")
    blocker = invoke_agent.delay("Never stop", options=ENDLESS)
    eventually(lambda: worker.runs(blocker.id))
    low = invoke_agent.delay("low", tier="background", options=ENDLESS)
    asked_at = app.redis.time()[0]
    eventually(lambda: app.redis.time()[0] > asked_at + 2, what="it has waited its maximum")
    high = [invoke_agent.delay("high", options={"num_predict": 1}) for _ in range(3)]
    blocker.cancel()
    eventually(lambda: worker.runs(low.id))
    assert waits("interactive.any") == len(high), "and is not preempted"
    low.cancel()
    assert [handle.get(timeout=30)["stop_reason"] for handle in high] == ["length"] * 3
    assert started(low) < min(map(started, high))
