"""What became of a run is told to Celery: replied, published again, given back."""

from datetime import UTC, datetime

import pytest
from celery.backends.cache import CacheBackend
from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry
from celery.utils.saferepr import saferepr
from kombu.utils.json import dumps, loads

from gaelp_tasks.celery_app import app
from gaelp_tasks.errors import InvocationCut, NodeError, NodeFailed
from gaelp_tasks.models import EmbeddingResult, Tier
from gaelp_tasks.queues import tier_of
from gaelp_tasks.retries import Cut, Done, Failed, Retry, Snooze
from gaelp_tasks.streams import StreamFenced
from gaelp_tasks.tasks.base import Reply
from gaelp_tasks.tasks.invoke import invoke_agent
from support.posts import RESULT, arguments, decoded

QUEUES = ("interactive", "batch", "background", "elsewhere")


# -- the reply


def test_a_reply_is_the_result_mapping_and_shows_no_text():
    reply = Reply(RESULT)
    assert loads(dumps(reply)) == RESULT.model_dump(mode="json")
    assert reply["text"] == "SECRET"
    for shown in (repr(reply), str(reply), saferepr(reply), f"{reply}"):
        assert "SECRET" not in shown
    assert "stop" in repr(reply)


def test_a_reply_with_vectors_shows_none():
    result = EmbeddingResult(
        id="i", model="m", node="n", tier=Tier.BATCH, priority=5, embeddings=((0.125,),), attempts=1
    )
    assert "0.125" not in repr(Reply(result))
    assert loads(dumps(Reply(result)))["embeddings"] == [[0.125]]


# -- delivering an outcome


def test_what_is_done_is_replied_and_the_chain_goes_on(request_of):
    request = request_of(callbacks=["next"], chain=["after"])
    assert invoke_agent.deliver(Done(RESULT)) == RESULT.model_dump(mode="json")
    assert (request.callbacks, request.chain) == (["next"], ["after"])


def test_what_was_cut_is_replied_and_what_was_to_follow_fails(request_of, post):
    later = [invoke_agent.s().set(task_id=name) for name in ("last", "next")]
    request = request_of(callbacks=["callback"], chain=later, errbacks=["on error"])
    assert invoke_agent.deliver(Cut(RESULT))["text"] == "SECRET"
    assert (request.callbacks, request.chain) == (None, None)
    for name in ("last", "next"):
        failure = app.backend.get_task_meta(name)
        assert failure["status"] == "FAILURE"
        assert isinstance(failure["result"], InvocationCut)
        assert "SECRET" not in str(failure["result"])
    assert post() == []


def test_a_chord_is_told_that_its_member_was_cut(request_of, post, monkeypatch):
    told = []
    monkeypatch.setattr(CacheBackend, "delete_group", lambda _, group: told.append(group))
    monkeypatch.setattr(
        CacheBackend, "on_chord_part_return", lambda _, *part: told.append((part[0].chord, *part[1:]))
    )
    request = request_of(chord="body", group="g")
    invoke_agent.deliver(Cut(RESULT))
    group, (chord, state, error) = told
    assert (group, chord, state) == ("g", "body", "FAILURE")
    assert "i was cut" in str(error)
    assert request.chord is None, "Celery would count it again, as a success"


def test_what_failed_raises_its_own_error(request_of):
    error = NodeFailed("why")
    request_of()
    with pytest.raises(NodeFailed) as caught:
        invoke_agent.deliver(Failed(error))
    assert caught.value is error


def test_no_time_to_wait_gives_the_message_back(request_of, post):
    request_of()
    with pytest.raises(Reject) as caught:
        invoke_agent.deliver(Snooze(0.0, "stopped: shutdown"))
    assert caught.value.requeue is True
    assert post() == []


@pytest.mark.parametrize(
    ("outcome", "retries", "error"),
    [(Retry(30.0, NodeFailed("why")), 3, NodeFailed), (Snooze(30.0, "full"), 2, NodeError)],
)
def test_a_retry_spends_an_attempt_and_a_snooze_does_not(request_of, post, outcome, retries, error):
    request_of(retries=2, gaelp_version=1, gaelp_published_at=123.0, callbacks=[], chain=None)
    before = datetime.now(UTC).timestamp()
    with pytest.raises(CeleryRetry) as caught:
        invoke_agent.deliver(outcome)
    assert isinstance(caught.value.exc, error)
    [(queue, message)] = post()
    headers = message["headers"]
    assert (queue, headers["id"], headers["retries"]) == ("batch.any", "i", retries)
    assert (headers["gaelp_published_at"], headers["gaelp_version"]) == (123.0, 1)
    assert 29.0 <= datetime.fromisoformat(headers["eta"]).timestamp() - before <= 60.0
    assert arguments(message)["prompt"] == "x"


def test_what_runs_again_keeps_all_that_celery_gave_it(request_of, post):
    """Private: Context.as_execution_options, by signature_from_request."""
    body = {"callbacks": ["link"], "errbacks": ["error"], "chain": ["next"], "chord": "body"}
    headers = {
        "group": "g", "group_index": 3, "root_id": "r", "parent_id": "p", "shadow": "s", "origin": "o",
        "ignore_result": True, "timelimit": [40.0, 30.0], "expires": "2126-11-20T00:00:00+00:00",
        "replaced_task_nesting": 1, "stamped_headers": ["job"], "stamps": {"job": ["one"]}, "trace": "t",
        "gaelp_version": 1, "gaelp_published_at": 123.0,
    }  # fmt: skip
    request_of(**body, **headers, reply_to="q")
    with pytest.raises(CeleryRetry):
        invoke_agent.deliver(Retry(30.0, NodeFailed("why")))
    [(_, message)] = post()
    assert {name: message["headers"].get(name) for name in headers} == headers
    assert decoded(message)[2] == body
    assert message["properties"]["reply_to"] == "q"


@pytest.mark.parametrize("tier", [None, "interactive", "batch", "background"])
@pytest.mark.parametrize("queue", QUEUES)
def test_what_runs_again_goes_back_to_its_own_queue_and_tier(request_of, post, queue, tier):
    ran_as = invoke_agent.accept([], {"prompt": "x", "tier": tier}, queue).tier
    request_of(queue=queue, kwargs={"prompt": "x", "tier": tier})
    with pytest.raises(CeleryRetry):
        invoke_agent.deliver(Retry(30.0, NodeFailed("why")))
    [(went_to, message)] = post()
    again = invoke_agent.accept([], arguments(message), went_to).tier
    assert again == ran_as
    if queue == "elsewhere":
        assert went_to == "elsewhere"
    else:
        assert QUEUES.index(tier_of(went_to)) >= QUEUES.index(queue), "it must not jump the queue"


def test_when_redis_is_away_the_message_is_given_back(request_of, post):
    request_of()
    post.redis.goes_away()
    with pytest.raises(Reject) as caught:
        invoke_agent.deliver(Retry(30.0, NodeFailed("why")))
    assert caught.value.requeue is True


def test_a_run_that_was_taken_over_is_ignored(request_of, bench, monkeypatch):
    async def fenced(*_):
        raise StreamFenced("taken over")

    monkeypatch.setattr("gaelp_tasks.tasks.walk.walk", fenced)
    request_of()
    with pytest.raises(Ignore):
        invoke_agent.perform({"prompt": "x"}, lambda *_: None)
    assert bench.at.runs.ids() == ()


def test_a_run_with_a_key_that_is_repeated_publishes_itself(request_of, post):
    request_of(kwargs={"prompt": "x", "tier": "batch", "idempotency_key": "k"})
    with pytest.raises(CeleryRetry):
        invoke_agent.deliver(Retry(1.0, NodeFailed("x")))
    [(_, message)] = post()
    assert message["headers"]["id"] == "i", "a plain sender has chosen it"


def test_the_stored_answer_of_a_known_step_is_told_without_a_run(request_of, post):
    request_of(gaelp_asked_again=True)
    app.backend.mark_as_done("i", Reply(RESULT), request=None)
    assert invoke_agent.perform({"prompt": "x"}, None).data["text"] == "SECRET"
