"""Publishing a call and telling Celery what became of it."""

import base64
import json
from contextlib import nullcontext
from datetime import UTC, datetime

import pytest
from celery.backends.cache import CacheBackend
from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry
from celery.utils.saferepr import saferepr
from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps, loads

from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.errors import (
    AttachmentLost,
    BrokerUnavailable,
    InvalidInvocation,
    InvocationCut,
    NodeError,
    NodeFailed,
)
from gaelp_tasks.models import EmbeddingResult, InvocationResult, Tier
from gaelp_tasks.models.invocation import WITH_ATTACHMENT, WITH_BOUND, WITHOUT_ATTACHMENT
from gaelp_tasks.queues import step_of, tier_of
from gaelp_tasks.registry import AGENTS
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.retries import Cut, Done, Failed, Retry, Snooze
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks import base as tasks_base
from gaelp_tasks.tasks.base import Reply
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.idempotency import id_of
from gaelp_tasks.tasks.invoke import invoke_agent
from support.fakes import FakeBroker

RESULT = InvocationResult(
    id="i", agent="chat", model="m", node="n", tier=Tier.BATCH, priority=5, text="SECRET", stop_reason="stop",
    attempts=1,
)  # fmt: skip
QUEUES = ("interactive", "batch", "background", "elsewhere")
PIXEL = "iVBORw0KGgo="


@pytest.fixture
def post(monkeypatch):
    """The app of this process publishes into memory; `post()` empties every queue: [(queue, message)]."""
    fake = FakeBroker()
    connection = Connection("memory://")
    monkeypatch.setattr(tasks_base, "_answered", {})
    monkeypatch.setitem(app.__dict__, "redis", fake.sync)
    monkeypatch.setattr(GaelpApp, "backend", CacheBackend(app=app, backend="memory"))
    producer = app.amqp.Producer(connection, auto_declare=False)
    monkeypatch.setattr(GaelpApp, "producer_or_acquire", lambda *_, **__: nullcontext(producer))

    def collect():
        channel = connection.default_channel
        known = sorted(channel.queues)
        return [(name, channel._get(name)) for name in known for _ in range(channel._size(name))]

    collect.redis = fake
    yield collect
    collect()
    connection.close()


@pytest.fixture
def request_of():
    """`request_of(kwargs, queue=...)` makes it the request under way."""
    pushed = []

    def push(queue="batch", **fields):
        invoke_agent.push_request(
            id="i",
            args=[],
            called_directly=False,
            is_eager=False,
            delivery_info={"exchange": queue, "routing_key": queue, "priority": 0, "redelivered": False},
            **{"kwargs": {"prompt": "x", "tier": "batch"}, "retries": 0} | fields,
        )
        pushed.append(True)
        return invoke_agent.request

    yield push
    for _ in pushed:
        invoke_agent.pop_request()


def decoded(message):
    """The body of a message: positional arguments, keyword arguments, the rest."""
    return loads(base64.b64decode(message["body"]).decode())


def arguments(message):
    return decoded(message)[1]


# -- checking a call


@pytest.mark.parametrize(
    ("tier", "queue", "counts"),
    [
        (None, None, "interactive"),
        (None, "background", "background"),
        ("batch", None, "batch"),
        ("interactive", "background", "background"),
        ("background", "interactive", "background"),
        ("batch", "elsewhere", "batch"),
    ],
)
def test_queue_and_tier_settle_which_tier_counts(tier, queue, counts):
    assert invoke_agent.accept(["x"], {"tier": tier}, queue).tier == counts


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        (["a", "b"], {}, "too many"),
        ([], {"colour": "red"}, "colour"),
        (["a"], {"prompt": "b"}, "prompt"),
        ([], {}, "empty"),
        ([""], {}, "empty"),
        (["x"], {"agent": "poet"}, "chat, coding, reasoning, research"),
        (["x"], {"tier": "vip"}, "interactive, batch, background"),
        (["x"], {"tier": ["batch"]}, "interactive, batch, background"),
        (["x"], {"priority": 11}, "priority"),
    ],
)
def test_a_bad_call_is_refused_before_anything_is_published(post, args, kwargs, says):
    with pytest.raises(InvalidInvocation, match=says) as caught:
        invoke_agent.apply_async(args, kwargs)
    assert str(caught.value).endswith(".")
    assert post() == []


@pytest.mark.parametrize("field", ["tier", "agent"])
def test_a_prompt_given_in_the_wrong_place_is_not_repeated(field):
    with pytest.raises(InvalidInvocation) as caught:
        invoke_agent.accept(["x"], {field: "my SECRET\nprompt"}, None)
    assert "SECRET" not in str(caught.value)


def test_an_agent_registered_here_can_be_called(monkeypatch):
    monkeypatch.setitem(AGENTS.registered, "poet", type("Poet", (), {}))
    assert invoke_agent.accept(["x"], {"agent": "poet"}, None).agent == "poet"


def test_an_embedding_is_checked_too(post):
    assert embed.accept([["a", "b"]], {}, "batch").tier == "batch"
    with pytest.raises(InvalidInvocation):
        embed.delay([])
    with pytest.raises(InvalidInvocation):
        embed.delay("x", agent="chat")
    assert post() == []


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


def test_a_run_that_was_taken_over_is_ignored(request_of, monkeypatch):
    from gaelp_tasks.clients.scripted import ScriptedClient
    from gaelp_tasks.runtime import shared_runtime
    from gaelp_tasks.streams import StreamFenced
    from support.fakes import Workbench

    bench = Workbench(shared_runtime().loop, FakeBroker(), ScriptedClient())

    async def fenced(*_):
        raise StreamFenced("taken over")

    monkeypatch.setattr("gaelp_tasks.tasks.resources.shared_resources", lambda: bench.at)
    monkeypatch.setattr("gaelp_tasks.tasks.walk.walk", fenced)
    request_of()
    with pytest.raises(Ignore):
        invoke_agent.perform({"prompt": "x"}, lambda *_: None)
    assert bench.at.runs.ids() == ()


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


# -- long prompts


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


@pytest.mark.parametrize("most_tokens", [0, -1, 1.5, True, "5"])
def test_a_bound_that_is_none_is_refused_at_the_call(post, most_tokens):
    with pytest.raises(InvalidInvocation, match="most_tokens"):
        invoke_agent.delay("Hi", most_tokens=most_tokens)


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


@pytest.fixture
def bench(monkeypatch):
    from gaelp_tasks.clients.scripted import ScriptedClient
    from gaelp_tasks.runtime import shared_runtime
    from support.fakes import Workbench

    made = Workbench(shared_runtime().loop, FakeBroker(), ScriptedClient())
    monkeypatch.setattr("gaelp_tasks.tasks.resources.shared_resources", lambda: made.at)
    return made


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
