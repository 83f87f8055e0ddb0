"""Interactive calls wait for no long background run: slots of lower tiers count as free, on a real worker."""

import json
from typing import Any

import pytest

from gaelp_tasks import app, counts, invoke_agent
from gaelp_tasks.queues import lists
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

ENDLESS = {"num_predict": 1_000_000}
ONCE = {"num_predict": 1}


@pytest.fixture
def worker(start_worker, node):
    return start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="1")


@pytest.fixture
def endless():
    """Start runs that go on until the test is over."""
    handles = []

    def start(tier: str) -> Any:
        handles.append(invoke_agent.delay("Never stop", tier=tier, options=ENDLESS))
        return handles[-1]

    yield start
    for handle in handles:
        handle.cancel()
    for handle in handles:
        handle.get(timeout=30)


def held() -> dict[str, int]:
    """Ids of what workers hold, and which claim of it that is."""
    found: Any = app.redis.hvals(app.keys.unacked)
    records = [json.loads(record.partition("\n")[0]) for record in found]
    return {record["id"]: record["claim"] for record in records}


def waits(queue: str) -> int:
    return sum(app.redis.llen(name) for name in lists(queue))


def test_an_interactive_call_does_not_wait_for_a_background_run_which_goes_on_afterwards(worker, endless):
    background = endless("background")
    eventually(lambda: worker.runs(background.id))
    answer = invoke_agent.delay("Hi", options=ONCE).get(timeout=10)
    assert answer["timings"]["queued_s"] < 2.0
    eventually(lambda: worker.runs(background.id), what="it goes on")
    background.cancel()
    cut = background.get(timeout=30)
    assert (cut["stop_reason"], cut["attempts"]) == ("cancelled", 1)
    assert counts.counted(app)[counts.PREEMPTED] == 1
    assert not waits("background.any")


def test_who_was_preempted_three_times_keeps_its_slot(worker, endless):
    background = endless("background")
    for claim in (1, 2, 3):
        eventually(lambda claim=claim: held() == {background.id: claim})
        invoke_agent.delay("Hi", options=ONCE).get(timeout=10)
    eventually(lambda: held() == {background.id: 4})
    waiting = invoke_agent.delay("Hi", options=ONCE)
    eventually(lambda: waits("interactive.any") == 1)
    batch = endless("batch")
    eventually(lambda: waits("batch.any") == 1)
    assert held() == {background.id: 4}
    assert app.redis.get(app.keys.preempted(background.id)) == "3"
    background.cancel()
    waiting.get(timeout=30)
    eventually(lambda: worker.runs(batch.id))


def test_only_a_strictly_higher_tier_preempts(worker, endless):
    background = endless("background")
    eventually(lambda: worker.runs(background.id))
    second = endless("background")
    eventually(lambda: waits("background.any") == 1)
    batch = endless("batch")
    eventually(lambda: worker.runs(batch.id))
    eventually(lambda: held() == {batch.id: 1}, what="the background run has made way")
    other = endless("batch")
    eventually(lambda: waits("batch.any") == 1)
    interactive = endless("interactive")
    eventually(lambda: worker.runs(interactive.id))
    eventually(lambda: held() == {interactive.id: 1}, what="the batch run has made way")
    last = endless("interactive")
    eventually(lambda: waits("interactive.any") == 1)
    assert held() == {interactive.id: 1}
    spared = (second, other, interactive, last)
    assert not app.redis.exists(*(app.keys.preempted(one.id) for one in spared))
