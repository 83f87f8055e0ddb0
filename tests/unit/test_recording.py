"""What a worker tells the history of an end: by what Celery says, without texts unless asked to keep them."""

import inspect
from types import SimpleNamespace

import pytest
import redis
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry
from celery.states import FAILURE, IGNORED, RETRY, SUCCESS
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.connections import Full, Refused, Replica
from gaelp_tasks.db.history import COLUMNS
from gaelp_tasks.endings import BOUND_BYTES, ENTRY_BYTES, bound
from gaelp_tasks.errors import InvalidInvocation, NodeFailed
from gaelp_tasks.models.ending import Ending
from gaelp_tasks.models.invocation import EmbeddingResult, InvocationResult, Tier
from gaelp_tasks.models.usage import Timings, Usage
from gaelp_tasks.tasks.base import FETCHED, Reply
from gaelp_workers.recording import ended, unread, until_told, watch

INVOKE, EMBED = "gaelp.invoke_agent", "gaelp.embed"


def request(args=(), /, **arguments):
    told = {"gaelp_claim": 3, "hostname": "gaelp@one", "delivery_info": {"routing_key": "batch.m"}}
    return Context(id="an-id", args=list(args), kwargs=arguments, retries=1, **told)


def answer(**changed):
    facts = {
        "id": "an-id", "agent": "coding", "model": "m:1b", "node": "http://n:1", "tier": Tier.BATCH,
        "priority": 8, "text": "the answer", "stop_reason": "stop", "attempts": 2,
        "usage": Usage(prompt_tokens=5, completion_tokens=7),
        "timings": Timings(queued_s=1.0, load_s=2.0, first_token_s=3.0, total_s=4.0),
    }  # fmt: skip
    return Reply(InvocationResult(**(facts | changed)))


def test_an_answer_is_told_with_all_that_is_known_of_it():
    told = ended(INVOKE, request(prompt="SECRET", tenant="t"), SUCCESS, answer(), text_bytes=0)
    assert told.columns() == {
        "id": "an-id", "task": INVOKE, "state": "done", "stop_reason": "stop", "error": "", "tier": "batch",
        "priority": 8, "tenant": "t", "agent": "coding", "model": "m:1b", "node": "http://n:1",
        "worker": "gaelp@one", "claims": 3, "attempts": 2, "queued_s": 1.0, "load_s": 2.0,
        "first_token_s": 3.0, "total_s": 4.0,
        "prompt_tokens": 5, "completion_tokens": 7, "prompt": None, "text": None,
    }  # fmt: skip


def test_the_history_has_a_column_for_each_thing_told_and_when_it_was():
    assert {*Ending.model_fields, "finished_at"} == set(COLUMNS)


@pytest.mark.parametrize(
    ("stop_reason", "state"),
    [("length", "done"), ("cancelled", "cut"), ("deadline", "cut"), ("expired", "cut")],
)
def test_what_was_cut_is_told_as_cut(stop_reason, state):
    told = ended(INVOKE, request(), SUCCESS, answer(stop_reason=stop_reason), text_bytes=0)
    assert (told.state, told.stop_reason) == (state, stop_reason)


def test_embeddings_are_told_without_their_vectors():
    vectors = EmbeddingResult(
        id="an-id",
        model="e",
        node="http://n:1",
        tier=Tier.INTERACTIVE,
        priority=5,
        embeddings=((0.5,),),
        attempts=1,
    )
    told = ended(EMBED, request(input=["one", "two"]), SUCCESS, Reply(vectors), text_bytes=100)
    assert (told.agent, told.model, told.prompt, told.text) == ("", "e", "one\n\ntwo", None)
    assert "0.5" not in told.model_dump_json()


def test_a_failure_is_told_by_its_sentence_and_by_what_was_asked():
    asked = request(agent="research", model="m:1b", tier="interactive", priority=2)
    told = ended(INVOKE, asked, FAILURE, NodeFailed("The node failed."), text_bytes=0)
    assert (told.state, told.stop_reason, told.error) == ("failed", "", "NodeFailed: The node failed.")
    assert (told.tier, told.priority, told.agent, told.model) == ("batch", 2, "research", "m:1b")
    assert (told.attempts, told.claims, told.total_s) == (2, 3, None)


def test_a_strange_error_may_repeat_a_prompt_so_only_its_name_is_told():
    told = ended(INVOKE, request(), FAILURE, ValueError("SECRET"), text_bytes=0)
    assert told.error == "ValueError"


SOME = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JUNK = SOME | st.lists(SOME, max_size=2) | st.dictionaries(st.text(), SOME, max_size=2)


@given(st.lists(JUNK, max_size=3), st.dictionaries(
    st.sampled_from(["prompt", "messages", "input", "agent", "model", "tier", "priority", "tenant"]), JUNK
), st.integers(0, 50))  # fmt: skip
def test_whatever_a_sender_wrote_a_failure_can_be_told(args, arguments, text_bytes):
    refused = InvalidInvocation("The prompt is empty.")
    for task in (INVOKE, EMBED):
        told = ended(task, request(args, **arguments), FAILURE, refused, text_bytes=text_bytes)
        assert Ending.model_validate_json(told.model_dump_json()) == told
        assert "\0" not in told.tenant + told.model + (told.prompt or "")
        assert unread(task, request(args, **arguments), text_bytes=text_bytes).stop_reason == "expired"


@pytest.mark.parametrize("state", [RETRY, IGNORED, "REJECTED", "STARTED"])
def test_what_is_not_over_is_not_told(state):
    assert ended(INVOKE, request(), state, None, text_bytes=0) is None


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ({"prompt": "why?"}, "why?"),
        ({"prompt": {"text": "the step before"}}, "the step before"),
        ({"messages": [{"role": "user", "content": "why?"}]}, "user: why?"),
        ({"messages": [{"role": "user", "content": "a", "images": ["BASE64"]}]}, "user: a"),
        ({}, ""),
    ],
)
def test_a_prompt_is_kept_without_its_images_where_a_setting_says_so(arguments, prompt):
    told = ended(INVOKE, request(**arguments), SUCCESS, answer(), text_bytes=100)
    assert (told.prompt, told.text) == (prompt, "the answer")


def test_a_prompt_that_lay_beside_its_message_is_kept_like_any_other():
    asked = request(tenant="me")
    asked.update({FETCHED: {"messages": [{"role": "user", "content": "why?", "images": ["BASE64"]}]}})
    assert ended(INVOKE, asked, SUCCESS, answer(), text_bytes=100).prompt == "user: why?"
    assert ended(INVOKE, asked, SUCCESS, answer(), text_bytes=0).prompt is None


def test_a_plain_senders_first_argument_is_the_prompt():
    assert ended(INVOKE, request(["why?"]), SUCCESS, answer(), text_bytes=100).prompt == "why?"


@given(st.text(), st.integers(1, 40))
def test_a_text_is_cut_between_characters(text, text_bytes):
    kept = ended(INVOKE, request(prompt=text), SUCCESS, answer(text="a" + text), text_bytes=text_bytes)
    for whole, part in ((text, kept.prompt), ("a" + text, kept.text)):
        there = whole.replace("\0", "\N{REPLACEMENT CHARACTER}")
        assert there.startswith(part)
        rest = whole[len(part) :]
        assert not rest or len((whole[: len(part)] + rest[0]).encode()) > text_bytes


@given(st.integers(0, 2**32))
def test_what_waits_in_redis_is_bounded_whatever_is_kept_of_a_text(text_bytes):
    one = ENTRY_BYTES + 2 * text_bytes
    assert bound(text_bytes) * one <= max(BOUND_BYTES, one)
    assert bound(text_bytes) >= 1


# --- when and how often it is told ---


class Redis:
    """Raises one after the other, then takes what it is told."""

    def __init__(self, *troubles):
        self.troubles = list(troubles)
        self.told = 0

    def __call__(self):
        if self.troubles:
            raise self.troubles.pop(0)
        self.told += 1


@pytest.mark.parametrize("trouble", [redis.ConnectionError, redis.TimeoutError, Full, Replica, OSError])
def test_an_end_waits_for_a_redis_that_is_away_or_full(trouble, monkeypatch):
    monkeypatch.setattr("gaelp_workers.recording.AGAIN_S", 0.0)
    away = Redis(*[trouble("later")] * 5)
    until_told(away)
    assert away.told == 1


def test_a_redis_that_will_never_take_it_holds_up_nothing(caplog):
    until_told(Redis(Refused("NOPERM")))
    assert "does not take the end of an invocation into the history (NOPERM)" in caplog.text


def task_of(run, **changed):
    request = Context(called_directly=False, id="an-id", **changed)
    task = SimpleNamespace(run=run, request=request)
    told = []
    watch(task, lambda *ending: told.append(ending))
    return task, told


def test_an_end_is_told_with_what_the_run_returned_or_raised():
    task, told = task_of(lambda prompt: prompt.upper())
    assert task.run("a") == "A"
    assert told == [(task, SUCCESS, "A")]
    failure = NodeFailed("no")

    def fail():
        raise failure

    task, told = task_of(fail)
    with pytest.raises(NodeFailed):
        task.run()
    assert told == [(task, FAILURE, failure)]


@pytest.mark.parametrize("way", [Retry(), Reject(requeue=True), Ignore(), KeyboardInterrupt()])
def test_a_run_that_is_not_the_last_tells_no_end(way):
    def leave():
        raise way

    task, told = task_of(leave)
    with pytest.raises(type(way)):
        task.run()
    assert told == []


@pytest.mark.parametrize("how", [{"called_directly": True}, {"is_eager": True}])
def test_what_is_no_run_of_a_message_tells_no_end(how):
    task, told = task_of(lambda: "a")
    task.request.update(how)
    assert task.run() == "a"
    assert told == []


def test_a_watched_task_still_has_the_arguments_of_its_own():
    def run(prompt, *, agent="chat"):
        return prompt, agent

    task, _ = task_of(run)
    assert inspect.signature(task.run) == inspect.signature(run)
