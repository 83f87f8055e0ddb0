"""A message takes its trace along, and who sends it is told of once."""

from types import SimpleNamespace

import pytest
from celery.states import SUCCESS
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, StatusCode

from gaelp_tasks.tracing import Tracing
from gaelp_workers.envelope import fault
from support.traced import BATCH, INVOKE, SENT, answer, run, task


def test_what_a_run_publishes_belongs_to_it(hears, tracing, told):
    def inside():
        with tracing.sending("add", queue="celery", task_id="next") as headers:
            assert headers["traceparent"]

    run(hears, task(), SUCCESS, answer(), inside)
    sent, claim = told.get_finished_spans()
    assert (sent.name, sent.kind) == ("send celery", SpanKind.PRODUCER)
    assert sent.parent.span_id == claim.context.span_id
    assert sent.attributes["messaging.message.id"] == "next"


def test_a_line_of_a_batch_begins_a_trace_with_a_link_to_who_conducts(hears, tracing, told):
    def inside():
        with tracing.sending(INVOKE, queue="batch.any", task_id="line-1"):
            pass

    run(hears, task(BATCH), SUCCESS, None, inside)
    line, conductor = told.get_finished_spans()
    assert line.parent is None
    assert line.context.trace_id != conductor.context.trace_id
    assert [link.context.span_id for link in line.links] == [conductor.context.span_id]


def test_what_is_sent_takes_its_own_headers_and_the_trace_along(tracing, told):
    with tracing.sending(INVOKE, queue=SimpleNamespace(name="interactive"), headers={"mine": 1}) as headers:
        pass
    [span] = told.get_finished_spans()
    assert span.name == "send interactive"
    assert headers["mine"] == 1
    assert headers["traceparent"].split("-")[1:3] == [
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
    ]


def test_what_is_published_again_keeps_its_trace_and_is_no_second_sending(tracing, told):
    with tracing.sending(INVOKE, headers=SENT) as headers:
        pass
    assert headers == SENT
    assert told.get_finished_spans() == ()


def test_a_service_that_exports_nothing_hands_on_the_trace_it_is_in():
    around = trace.set_span_in_context(
        trace.NonRecordingSpan(trace.SpanContext(int("ab" * 16, 16), int("cd" * 8, 16), is_remote=False))
    )
    token = context.attach(around)
    try:
        with Tracing(trace.NoOpTracer()).sending(INVOKE) as headers:
            pass
    finally:
        context.detach(token)
    assert headers["traceparent"].split("-")[1] == "ab" * 16


def test_a_message_that_could_not_be_sent_is_told_without_the_text_of_the_error(tracing, told):
    with pytest.raises(ValueError, match="SECRET"), tracing.sending(INVOKE):
        raise ValueError("SECRET")
    [span] = told.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert "SECRET" not in span.to_json()
    assert not tracing.is_inside()


@pytest.mark.parametrize("more", [SENT, {"traceparent": {"a": []}, "tracestate": 7}])
def test_a_message_with_a_trace_is_no_dead_letter(more):
    message = {
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"id": "an-id", "task": INVOKE, **more},
        "properties": {"body_encoding": None, "delivery_info": {}},
        "body": "[[], {}, {}]",
    }
    assert fault(message) is None


def test_lines_of_the_log_tell_the_current_span(tracing):
    assert tracing.ids() == {}
    with tracing.sending(INVOKE) as headers:
        assert tracing.ids()["trace_id"] == headers["traceparent"].split("-")[1]
