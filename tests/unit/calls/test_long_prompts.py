"""A long call lies beside its message, and its run is given the whole of it."""

import pytest
from celery.exceptions import Reject
from celery.exceptions import Retry as CeleryRetry
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps, loads

from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.errors import AttachmentLost, BrokerUnavailable, InvalidInvocation, NodeFailed
from gaelp_tasks.models.invocation import WITH_ATTACHMENT, WITH_BOUND, WITHOUT_ATTACHMENT
from gaelp_tasks.retries import Done, Retry
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.base import Reply
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.invoke import invoke_agent
from support.posts import RESULT, arguments

PIXEL = "iVBORw0KGgo="
LONG = "long " * 20_000


def attached(post):
    """What lies in Redis beside messages, by key."""
    redis = post.redis.sync
    return {key: redis.get(key) for key in redis.scan_iter(match=app.keys.attachment("*", "*"))}


def test_a_long_prompt_lies_beside_its_message(post):
    handle = invoke_agent.delay(LONG, images=[PIXEL], model="m", tenant="me", metadata={"a": 1})
    [(queue, message)] = post()
    assert queue == "interactive.m"
    assert len(dumps(message)) < 3000
    assert arguments(message).keys() == {"agent", "model", "tier", "priority", "tenant"}
    reference = message["headers"]["gaelp_attachment"]
    [(key, content)] = attached(post).items()
    assert key == f"gaelp:attachment:{handle.id}:{reference['place']}"
    assert loads(content) == {"prompt": LONG, "images": [PIXEL], "metadata": {"a": 1}}
    assert post.redis.sync.ttl(key) == -1, "its message is published"
    assert message["headers"]["gaelp_version"] == WITH_ATTACHMENT, "an older worker would misread it"


@pytest.mark.parametrize("prompt", ["Hi", LONG])
def test_only_workers_that_know_of_bounds_take_a_call_that_has_one(post, prompt):
    invoke_agent.delay(prompt, most_tokens=5)
    [(_, message)] = post()
    assert arguments(message)["most_tokens"] == 5
    assert message["headers"]["gaelp_version"] == WITH_BOUND
    invoke_agent.delay("Hi")
    [(_, message)] = post()
    assert message["headers"]["gaelp_version"] == WITHOUT_ATTACHMENT, "older workers take it too"


def test_long_texts_to_embed_lie_beside_their_message(post):
    embed.delay([LONG, "b"], model="m")
    [(_, message)] = post()
    assert arguments(message).keys() == {"model", "tier", "priority"}
    assert [loads(content) for content in attached(post).values()] == [{"input": [LONG, "b"]}]


def test_a_short_prompt_costs_redis_nothing_more(post):
    invoke_agent.delay("x")
    [(_, message)] = post()
    assert "gaelp_attachment" not in message["headers"]
    assert attached(post) == {}


def test_a_long_result_of_the_step_before_lies_beside_the_message_of_the_next(post):
    invoke_agent.delay({"text": LONG, "id": "i"})
    assert [loads(content) for content in attached(post).values()] == [{"prompt": LONG}]


def test_what_the_broker_did_not_take_leaves_something_for_a_day(post, monkeypatch):
    def refuse(*_, **__):
        raise OperationalError("full")

    monkeypatch.setattr(GaelpApp, "send_task", refuse)
    with pytest.raises(BrokerUnavailable):
        invoke_agent.delay(LONG)
    [key] = attached(post)
    assert 0 < post.redis.sync.ttl(key) <= 86_400


def test_a_reference_that_somebody_brings_along_counts_for_nothing(post):
    invoke_agent.apply_async(["x"], headers={"gaelp_attachment": {"place": "0" * 32}})
    [(_, message)] = post()
    assert "gaelp_attachment" not in message["headers"]
    assert arguments(message)["prompt"] == "x"


def published(post, request_of, **more):
    """A long call that is now the request under way; its reference."""
    app.backend.forget("i")
    invoke_agent.apply_async([LONG], {"tier": "batch"}, task_id="i")
    [(_, message)] = post()
    told = {name: message["headers"][name] for name in ("gaelp_attachment", "gaelp_version")}
    request_of(kwargs=arguments(message), gaelp_published_at=1.0, **told, **more)
    return told["gaelp_attachment"]


def perform(monkeypatch, outcome):
    """Run what is under way, to this outcome; what it was asked for."""
    asked = []

    async def ends(run, *_):
        asked.append(run.asked)
        return outcome

    monkeypatch.setattr("gaelp_tasks.tasks.walk.walk", ends)
    invoke_agent.perform(invoke_agent.request.kwargs, lambda *_: None)
    return asked[0]


def test_a_run_is_given_the_whole_of_a_long_call(request_of, post, bench, monkeypatch):
    published(post, request_of)
    assert perform(monkeypatch, Done(RESULT)).prompt == LONG


def test_a_long_call_that_runs_again_refers_to_what_is_there_already(request_of, post, bench, monkeypatch):
    reference = published(post, request_of)
    before = attached(post)
    with pytest.raises(CeleryRetry):
        perform(monkeypatch, Retry(30.0, NodeFailed("why")))
    [(_, message)] = post()
    assert message["headers"]["gaelp_attachment"] == reference
    assert message["headers"]["gaelp_version"] == WITH_ATTACHMENT
    assert "prompt" not in arguments(message)
    assert attached(post) == before


def test_what_is_missing_fails_in_one_sentence_without_a_retry(request_of, post, bench, monkeypatch):
    published(post, request_of)
    post.redis.sync.delete(*attached(post))
    with pytest.raises(AttachmentLost, match="not there any more"):
        perform(monkeypatch, Done(RESULT))
    assert post() == []


def test_what_is_missing_after_the_answer_was_told_tells_it_again(request_of, post, bench, monkeypatch):
    published(post, request_of)
    post.redis.sync.delete(*attached(post))
    app.backend.mark_as_done("i", Reply(RESULT), request=None)
    assert invoke_agent.perform(invoke_agent.request.kwargs, None).data["text"] == "SECRET"


def test_while_redis_is_away_a_long_call_is_given_back(request_of, post, bench, monkeypatch):
    published(post, request_of)
    post.redis.goes_away()
    with pytest.raises(Reject) as caught:
        perform(monkeypatch, Done(RESULT))
    assert caught.value.requeue is True


def test_json_that_takes_far_more_than_its_text_is_refused_at_the_call(post, monkeypatch):
    monkeypatch.setattr(app, "settings", Settings(max_prompt_bytes=100_000))
    with pytest.raises(InvalidInvocation, match="take 594,013 bytes as JSON and the limit is 400,000"):
        invoke_agent.delay("\x01" * 99_000)
    assert attached(post) == {}
