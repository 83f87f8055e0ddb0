"""Queues of models, with real workers: who takes what, in which order, and that nothing is stranded."""

from typing import Any

import pytest
from celery import Celery

from gaelp_tasks import app, embed, invoke_agent
from gaelp_tasks.errors import ModelMissing
from gaelp_tasks.overview import describe, of_tiers, waiting_in
from gaelp_tasks.queues import INBOXES, lists
from support.eventually import eventually
from support.model_server import EMBED_MODEL, ROOMY, ModelServer, slow_model

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

ENDLESS = {"num_predict": 100_000}
ONCE = {"num_predict": 1}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two model servers, each with a chat model that the other one lacks."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("red", "blue")}
    models = {name: {f"{name}:1b": slow_model(folder)} for name, folder in folders.items()}
    with (
        ModelServer(folders["red"], models=models["red"], num_ctx=ROOMY) as red,
        ModelServer(folders["blue"], models=models["blue"], num_ctx=ROOMY) as blue,
    ):
        yield {"red": red, "blue": blue}


@pytest.fixture
def plain(broker):
    """Somebody's own app, which knows nothing of ours."""
    with Celery("plain", broker=broker.url, backend=broker.url) as made:
        yield made


def waits(queue: str) -> int:
    return sum(app.redis.llen(name) for name in lists(queue))


def test_a_model_waits_for_its_own_node_and_holds_up_no_other(start_worker, servers):
    workers = {
        name: start_worker(GAELP_OLLAMA_NODES=server.url, GAELP_DEFAULT_MODEL=f"{name}:1b", name=name)
        for name, server in servers.items()
    }
    eventually(lambda: app.redis.zcard(app.keys.models) == 2)
    blocker = invoke_agent.delay("Never stop", model="red:1b", options=ENDLESS)
    eventually(lambda: workers["red"].runs(blocker.id))
    waiting = invoke_agent.delay("I wait", model="red:1b", options=ONCE)
    other = invoke_agent.delay("I do not", model="blue:1b", options=ONCE)
    assert other.get(timeout=30)["node"] == servers["blue"].url
    assert describe(app, waiting.id).place == ("interactive.red_1b", 1)
    assert waits("interactive.red_1b") == of_tiers(waiting_in(app))["interactive"] == 1
    blocker.cancel()
    assert waiting.get(timeout=30)["node"] == servers["red"].url


def test_a_model_that_nobody_has_fails_with_a_sentence_instead_of_waiting(start_worker, servers):
    start_worker(GAELP_OLLAMA_NODES=servers["red"].url)
    with pytest.raises(ModelMissing, match="green"):
        invoke_agent.delay("Hi", model="green:1b", options=ONCE).get(timeout=30)


def test_what_was_published_before_the_first_worker_came_is_found(start_worker, servers):
    handles = [
        invoke_agent.delay("Hi", model="red:1b", tier=tier, priority=priority, options=ONCE)
        for tier, priority in (("background", 10), ("interactive", 1), ("batch", 7))
    ]
    # nobody wrote this queue's name down
    app.redis.srem(app.keys.queues, "interactive.red_1b")
    start_worker(GAELP_OLLAMA_NODES=servers["red"].url)
    assert [handle.get(timeout=30)["tier"] for handle in handles] == ["background", "interactive", "batch"]


def test_priority_orders_a_tier_and_no_tier_is_jumped(start_worker, servers):
    worker = start_worker(GAELP_OLLAMA_NODES=servers["red"].url)
    blocker = invoke_agent.delay("Never stop", options=ENDLESS)
    eventually(lambda: worker.runs(blocker.id))
    told = {
        (tier, priority): invoke_agent.delay("Hi", tier=tier, priority=priority, options=ONCE)
        for tier in ("background", "interactive")
        for priority in (1, 10, 5)
    }
    blocker.cancel()
    for handle in told.values():
        handle.get(timeout=60)
    started = sorted(told, key=lambda one: describe(app, told[one].id).start["at"])
    assert started == [(tier, priority) for tier in ("interactive", "background") for priority in (10, 5, 1)]


def test_inboxes_are_sorted_by_a_worker_that_takes_nothing(start_worker, plain, servers):
    worker = start_worker(GAELP_OLLAMA_NODES=servers["red"].url)
    app.control.pool_shrink(1, destination=[worker.name], reply=True, limit=1, timeout=30)
    send: Any = plain.send_task
    sent = [
        send(
            "gaelp.invoke_agent",
            ["Hi"],
            {"options": ONCE, "model": "red:1b"},
            queue="interactive",
            priority=9,
        ),
        send(
            "gaelp.invoke_agent", ["Hi"], {"options": ONCE, "tier": "background"}, queue="batch", priority=3
        ),
        send("gaelp.embed", ["Hi"], {"model": EMBED_MODEL}, queue="batch"),
    ]
    eventually(lambda: not any(waits(inbox) for inbox in INBOXES), what="the inboxes are empty")
    assert [waits("interactive.red_1b"), waits("background.any"), waits("batch.tiny-embed_latest")] == [
        1,
        1,
        1,
    ]
    app.control.pool_grow(1, destination=[worker.name], reply=True, limit=1, timeout=30)
    assert [one.get(timeout=30)["tier"] for one in sent[:2]] == ["interactive", "background"]
    with pytest.raises(Exception, match="tiny-embed"):
        sent[2].get(timeout=30)


def test_an_embedding_waits_for_no_slot(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node)
    blocker = invoke_agent.delay("Never stop", options=ENDLESS)
    eventually(lambda: worker.runs(blocker.id))
    assert len(embed.delay(["a", "b"]).get(timeout=30)["embeddings"]) == 2
    assert len(embed.delay("a", model=EMBED_MODEL, tier="background").get(timeout=30)["embeddings"]) == 1
    assert worker.runs(blocker.id)
    blocker.cancel()


def test_maintenance_waits_for_no_slot(start_worker, node):
    from gaelp_tasks.tasks.maintenance import expire_abandoned_streams

    worker = start_worker(GAELP_OLLAMA_NODES=node)
    blocker = invoke_agent.delay("Never stop", options=ENDLESS)
    eventually(lambda: worker.runs(blocker.id))
    app.redis.xadd(app.keys.stream("left"), {"x": "y"})
    expire_abandoned_streams.delay(idle_s=0)
    eventually(lambda: app.redis.ttl(app.keys.stream("left")) > 0)
    blocker.cancel()


def test_redis_itself_rings_for_those_who_publish_without_our_library(start_worker, node):
    start_worker(GAELP_OLLAMA_NODES=node)

    def told_to() -> set[str]:
        found: Any = app.redis.client_list()
        return {one["redir"] for one in found if "t" in one["flags"] and "B" in one["flags"]}

    eventually(told_to, what="the worker has asked to be told")
    bells: Any = app.redis.client_list(_type="pubsub")
    assert told_to() <= {one["id"] for one in bells}
