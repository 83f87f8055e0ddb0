"""What OpenTelemetry is told of a claim: parent, links, outcome; nothing that users wrote."""

from types import SimpleNamespace

import pytest
from celery.exceptions import Ignore, Reject, Retry
from celery.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind, StatusCode

from gaelp_tasks.errors import NodeFailed
from gaelp_workers.tracing import begins, ends
from support.traced import INVOKE, NOW, answer, run, task


def test_a_claim_goes_on_in_the_trace_of_who_sent_it(hears, told):
    run(hears, task(prompt="SECRET", agent="coding"), SUCCESS, answer())
    [span] = told.get_finished_spans()
    assert (span.name, span.kind) == ("process batch.m", SpanKind.CONSUMER)
    assert f"{span.context.trace_id:032x}" == "ab" * 16
    assert f"{span.parent.span_id:016x}" == "cd" * 8
    assert span.context.trace_state.get("mine") == "1"
    assert span.status.status_code is StatusCode.UNSET


def test_a_claim_tells_what_was_asked_and_what_became_of_it(hears, told):
    run(hears, task(prompt="SECRET", agent="coding", priority=8), SUCCESS, answer())
    [span] = told.get_finished_spans()
    assert dict(span.attributes) == {
        "messaging.system": "celery", "messaging.operation.name": "process",
        "messaging.operation.type": "process", "messaging.destination.name": "batch.m",
        "messaging.message.id": "an-id", "messaging.client.id": "gaelp@one",
        "gaelp.task": INVOKE, "gaelp.claim": 3, "gaelp.attempt": 1, "gaelp.queue_wait_s": 2.5,
        "gaelp.tier": "batch", "gaelp.priority": 8, "gaelp.outcome": "done", "gaelp.stop_reason": "stop",
        "gaelp.node": "http://n:1", "gaelp.cached": False, "gaelp.load_s": 2.0, "gaelp.first_token_s": 3.0,
        "gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "ollama",
        "gen_ai.agent.name": "coding", "gen_ai.response.model": "m:1b", "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
    }  # fmt: skip


@pytest.mark.parametrize("junk", [{"traceparent": 7}, {"traceparent": ["00"]}, {"traceparent": "00-x"}, {}])
def test_without_a_trace_that_can_be_read_a_claim_begins_its_own(hears, told, junk):
    run(hears, task(headers=junk), SUCCESS, answer())
    [span] = told.get_finished_spans()
    assert span.parent is None


@pytest.mark.parametrize(
    ("state", "retval", "outcome"),
    [
        (SUCCESS, answer(stop_reason="length"), "done"),
        (SUCCESS, answer(stop_reason="cancelled"), "cut"),
        (REJECTED, Reject("stopped: preemption", requeue=True), "snooze"),
        (IGNORED, Ignore(), "fenced"),
        (FAILURE, NodeFailed("SECRET"), "failed"),
        (None, None, "failed"),
    ],
)
def test_every_way_out_of_a_run_is_an_outcome(state, retval, outcome):
    assert ends(state, retval, 0, calls=True)["gaelp.outcome"] == outcome


@pytest.mark.parametrize(("spent", "outcome"), [(1, "retry"), (0, "snooze")])
def test_a_run_that_is_published_again_has_failed_or_only_waits(hears, told, spent, outcome):
    again = Retry(exc=NodeFailed("SECRET"), sig=SimpleNamespace(options={"retries": 2 + spent}))
    run(hears, task(retries=2), RETRY, again)
    [span] = told.get_finished_spans()
    assert span.attributes["gaelp.outcome"] == outcome
    assert span.attributes.get("error.type") == ("NodeFailed" if spent else None)


def test_who_stopped_a_run_is_told_and_no_other_reason_for_its_end():
    assert ends(REJECTED, Reject("stopped: eviction"), 0, calls=True)["gaelp.stopped_by"] == "eviction"
    assert ends(REJECTED, Reject("Redis: SECRET"), 0, calls=True)["gaelp.stopped_by"] is None


def test_an_error_is_told_by_its_class_alone(hears, told):
    run(hears, task(prompt="SECRET"), FAILURE, ValueError("SECRET"))
    [span] = told.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError")
    assert span.attributes["error.type"] == "ValueError"
    assert span.events == ()
    assert "SECRET" not in span.to_json()


def test_each_claim_of_an_invocation_is_a_span_beside_the_others(hears, told):
    run(hears, task(), REJECTED, Reject("stopped: preemption"))
    run(hears, task(), SUCCESS, answer())
    first, second = told.get_finished_spans()
    assert first.context.trace_id == second.context.trace_id
    assert first.parent == second.parent


@given(
    arguments=st.dictionaries(
        st.sampled_from(["tier", "agent", "model", "priority", "prompt"]),
        st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text())),
    )
)
def test_whatever_a_message_asks_for_its_run_can_be_told(arguments):
    about = begins(INVOKE, task(**arguments).request, NOW)
    assert all(isinstance(value, str | int | float) for value in about.values())
