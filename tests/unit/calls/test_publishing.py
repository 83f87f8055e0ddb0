"""A call travels as one message: its queue, its priority, its headers, its id."""

import json
from datetime import UTC, datetime

import pytest
from kombu import Queue

from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.queues import step_of
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.tasks import base as tasks_base
from gaelp_tasks.tasks.base import Reply
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.idempotency import id_of
from gaelp_tasks.tasks.invoke import invoke_agent
from support.posts import RESULT, arguments, decoded

# -- publishing


def test_a_call_returns_a_handle_and_travels_as_one_message(post):
    handle = invoke_agent.delay("Why?", model="m", options={"temperature": 0.5})
    assert isinstance(handle, InvocationHandle)
    [(queue, message)] = post()
    assert queue == "interactive.m"
    assert message["headers"]["id"] == handle.id
    assert message["headers"]["gaelp_version"] == 1
    assert abs(message["headers"]["gaelp_published_at"] - datetime.now(UTC).timestamp()) < 60
    assert decoded(message)[0] == []
    assert arguments(message) == {
        "prompt": "Why?", "agent": "chat", "model": "m", "tier": "interactive", "priority": 5,
        "options": {"temperature": 0.5},
    }  # fmt: skip


def test_no_header_shows_a_prompt(post):
    invoke_agent.delay("SECRET", metadata={"k": "SECRET"})
    invoke_agent.delay(messages=[{"role": "user", "content": "SECRET"}])
    embed.delay("SECRET")
    for _, message in post():
        assert "SECRET" not in json.dumps([message["headers"], message["properties"]])
        assert message["headers"]["argsrepr"] == "()"
        assert message["headers"]["kwargsrepr"]


@pytest.mark.parametrize(
    ("asked", "options", "queue", "tier"),
    [
        ({"tier": "batch"}, {}, "batch.any", "batch"),
        ({"tier": "batch", "model": "m:1b"}, {}, "batch.m_1b", "batch"),
        ({}, {"queue": "background"}, "background.any", "background"),
        ({}, {"queue": Queue("background")}, "background.any", "background"),
        ({"tier": "background"}, {"queue": "interactive"}, "background.any", "background"),
        ({"tier": "interactive"}, {"queue": "batch.m"}, "batch.any", "batch"),
        ({"tier": "batch"}, {"queue": "elsewhere"}, "elsewhere", "batch"),
    ],
)
def test_a_message_goes_to_the_queue_of_the_tier_that_counts(post, asked, options, queue, tier):
    invoke_agent.apply_async(["x"], asked, **options)
    [(went_to, message)] = post()
    assert (went_to, arguments(message)["tier"]) == (queue, tier)


def test_the_priority_travels_as_an_argument_and_decides_the_place_in_the_queue(post):
    invoke_agent.apply_async(["x"], {"priority": 8}, priority=9)
    [(_, message)] = post()
    assert arguments(message)["priority"] == 8
    assert message["properties"]["priority"] == step_of(8), "Celery's own is dropped"


def test_a_queue_that_is_not_ours_knows_no_priority(post):
    invoke_agent.apply_async(["x"], {"priority": 8}, queue="elsewhere", priority=9)
    [(_, message)] = post()
    assert not message["properties"].get("priority")


def test_headers_of_the_caller_are_kept(post):
    invoke_agent.apply_async(["x"], headers={"trace": "t"})
    [(_, message)] = post()
    assert message["headers"]["trace"] == "t"
    assert message["headers"]["gaelp_version"] == 1


def test_the_reply_of_the_step_before_is_a_prompt(post):
    invoke_agent.s(agent="coding").apply_async((Reply(RESULT),))
    [(_, message)] = post()
    assert arguments(message)["prompt"] == "SECRET"
    assert arguments(message)["agent"] == "coding"


def test_without_redis_a_call_says_so_and_publishes_nothing(post):
    post.redis.goes_away()
    with pytest.raises(BrokerUnavailable, match="GAELP_BROKER_URL"):
        invoke_agent.delay("x")
    post.redis.comes_back()
    assert post() == []


def test_a_broker_that_just_answered_is_not_asked_again(post, monkeypatch):
    clock = iter([100.0, 104.9, 105.0])
    monkeypatch.setattr(tasks_base, "monotonic", lambda: next(clock))
    invoke_agent.delay("a")
    post.redis.goes_away()
    invoke_agent.delay("b")
    with pytest.raises(BrokerUnavailable):
        invoke_agent.delay("c")
    assert [arguments(message)["prompt"] for _, message in post()] == ["a", "b"]


# -- idempotency keys


def test_a_key_settles_the_id_and_is_published_once(post):
    first = invoke_agent.delay("x", idempotency_key="k")
    assert invoke_agent.s("x", idempotency_key="k").options["task_id"] == first.id == id_of("k", None)
    assert invoke_agent.s(idempotency_key="k").delay("x").id == first.id
    assert [message["headers"]["id"] for _, message in post()] == [first.id]


def test_what_is_known_is_published_again_where_something_goes_on_from_it(post):
    invoke_agent.delay("x", idempotency_key="k")
    [(_, first)] = post()
    invoke_agent.apply_async(["x"], {"idempotency_key": "k"}, link=invoke_agent.s())
    [(_, again)] = post()
    assert first["headers"].get("gaelp_asked_again") is None
    assert (again["headers"]["gaelp_asked_again"], again["headers"]["id"]) == (True, first["headers"]["id"])
