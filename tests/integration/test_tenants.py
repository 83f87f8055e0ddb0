"""How many invocations of one tenant run at once, over all workers; on a real Redis."""

import json
from typing import Any

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.cancellation import request_cancel
from support.claims import KEYS, claim, holder, message, publish
from support.eventually import eventually

pytestmark = pytest.mark.redis

QUEUES = ("batch.any",)


def ask(*ids: str, tenant: Any = "acme", task: str = "gaelp.invoke_agent") -> None:
    publish(*(message(name, task=task, gaelp_tenant=tenant) for name in ids), queue=QUEUES[0])


def taken(leases, seats=0) -> list[str]:
    return claim(leases, 9, QUEUES, seats)


def due(redis) -> dict[str, float]:
    return dict(redis.zrange(KEYS.parked, 0, -1, withscores=True))


def come_back(redis, leases) -> None:
    """What is parked is due now."""
    redis.zadd(KEYS.parked, dict.fromkeys(due(redis), 1))
    leases.sweep(redis)


@pytest.fixture
def capped(redis):
    return holder("capped", tenant_max=2)


def test_of_one_tenant_so_many_run_at_once_over_all_workers_and_others_go_on(redis, capped):
    ask("1", "2", "3")
    ask("other", tenant="other")
    ask("nobody's", tenant=None)
    assert taken(capped) == ["1", "2", "other", "nobody's"]
    ask("4")
    assert taken(holder("another", tenant_max=2)) == []
    assert {*due(redis)} == {"3", "4"}
    [reason] = {
        json.loads(record.partition("\n")[0])["reason"] for record in redis.hvals(KEYS.parked_messages)
    }
    assert reason == "its tenant runs 2 already, as many as it may"


def test_what_has_ended_or_died_is_counted_out(redis, capped):
    ask("1", "2", "3", "4")
    first, second = taken(capped)
    capped.done(next(tag for tag, task in capped.held.items() if task.id == first))
    come_back(redis, capped)
    assert taken(capped) == ["3"]
    assert redis.scard(KEYS.tenant("acme")) == 2
    capped.sweep(redis, dead=["capped"])
    come_back(redis, capped)
    assert len(taken(holder("next", tenant_max=2))) == 2, second


def test_without_a_cap_nobody_is_counted(redis, leases):
    ask("1", "2", "3")
    assert taken(leases) == ["1", "2", "3"]
    assert not redis.exists(KEYS.tenant("acme"))


def test_the_more_are_parked_the_longer_they_wait(redis, capped):
    ask(*map(str, range(150)))
    taken(capped)
    waits = sorted(due(redis).values())
    assert len(waits) == 148
    assert 1.0 < (waits[-1] - waits[0]) / 1000 < 2.0
    redis.zadd(KEYS.parked, {f"far {number}": waits[0] for number in range(20_000)})
    ask("late")
    taken(capped)
    assert due(redis)["late"] - waits[0] < 65_000


def test_what_is_to_be_cancelled_settles_though_its_tenant_runs_as_many_as_it_may(redis, capped):
    ask("1", "2", "3")
    taken(capped)
    request_cancel(redis, KEYS, "3", ttl_s=60)
    capped.sweep(redis)
    assert taken(capped) == ["3"]


def test_embeddings_and_other_tasks_are_not_counted_and_a_damaged_key_holds_nobody_up(redis, capped):
    ask("1", "2", "3", task="my.task")
    assert taken(capped) == ["1", "2", "3"]
    ask("4", "5", "6", task="gaelp.embed")
    assert taken(capped, seats=9) == ["4", "5", "6"]
    redis.set(KEYS.tenant("acme"), "damaged")
    ask("7", "8", "9")
    assert taken(capped) == ["7", "8"]


@pytest.mark.engine
@pytest.mark.slow
def test_publishers_of_ours_tell_whose_it_is_and_the_rest_runs_later(start_worker, node):
    start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="4", GAELP_TENANT_MAX_RUNNING="1")
    told = {"options": {"num_predict": 100_000}, "tenant": "acme"}
    endless = invoke_agent.delay("Never stop", **told)
    eventually(lambda: app.redis.scard(app.keys.tenant("acme")) == 1)
    waiting = invoke_agent.delay("Hi", tenant="acme", options={"num_predict": 1})
    invoke_agent.delay("Hi", tenant="other", options={"num_predict": 1}).get(timeout=30)
    eventually(lambda: app.redis.zscore(app.keys.parked, waiting.id), what="it is parked")
    endless.cancel()
    assert waiting.get(timeout=30)["stop_reason"] == "length"
