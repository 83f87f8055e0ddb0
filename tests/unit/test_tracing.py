"""What OpenTelemetry is told: parents, links, outcomes, models; nothing that users wrote, nothing unasked."""

import asyncio
import atexit
import logging
import os
import subprocess
import sys
from contextlib import aclosing
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry
from celery.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.clients import ChatResponse, Embeddings
from gaelp_tasks.errors import NodeFailed, SettingsError
from gaelp_tasks.models.invocation import InvocationResult, Tier
from gaelp_tasks.models.usage import Timings, Usage
from gaelp_tasks.runtime import Runtime
from gaelp_tasks.tasks.base import Reply
from gaelp_tasks.tracing import Seldom, Tracing, finish
from gaelp_workers.envelope import fault
from gaelp_workers.tracing import Listening, begins, ends, tell_of_models

INVOKE, BATCH = "gaelp.invoke_agent", "gaelp.run_batch"
SENT = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "mine=1"}
NOW = 1000.0


@pytest.fixture
def told():
    """The exporter that has every span which ended."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(told):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(told))
    return Tracing(provider.get_tracer("test"))


@pytest.fixture
def hears(tracing):
    return Listening(tracing, clock=lambda: NOW)


def task(name=INVOKE, /, *, retries=0, headers=SENT, **arguments):
    """One of Celery's with a request of its own, as it stands when its run begins."""
    return SimpleNamespace(
        name=name,
        request=Context(
            id="an-id", task=name, args=[], kwargs=arguments, retries=retries, gaelp_claim=3,
            gaelp_published_at=NOW - 2.5, hostname="gaelp@one", is_eager=False,
            delivery_info={"routing_key": "batch.m"}, **headers,
        ),
    )  # fmt: skip


def answer(**changed):
    facts = {
        "id": "an-id", "agent": "coding", "model": "m:1b", "node": "http://n:1", "tier": Tier.BATCH,
        "priority": 8, "text": "SECRET", "stop_reason": "stop", "attempts": 2,
        "usage": Usage(prompt_tokens=5, completion_tokens=7),
        "timings": Timings(queued_s=2.5, load_s=2.0, first_token_s=3.0, total_s=4.0),
    }  # fmt: skip
    return Reply(InvocationResult(**(facts | changed)))


def run(hears, which, state, retval, inside=lambda: None):
    """A run from Celery's first signal to its last."""
    hears.on_begin(sender=which, task_id="an-id")
    try:
        inside()
    finally:
        hears.on_end(sender=which, state=state, retval=retval)


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


class Client:
    """A model that answers as it is told."""

    def __init__(self, *chunks, error=None):
        self._chunks = chunks
        self._error = error

    async def chat(self, messages, *, model=None, **options):
        for chunk in self._chunks:
            yield chunk
        if self._error is not None:
            raise self._error

    async def load(self, model=None):
        return 0.5

    async def embed(self, texts, *, model, rank=0):
        usage = Usage(prompt_tokens=9)
        return Embeddings(vectors=((0.5,),), usage=usage, model=model, node="http://n:11434")


WORDS = (
    ChatResponse(content="", model="m:1b", node="http://n:11434"),
    ChatResponse(content="SECRET", model="m:1b", node="http://n:11434"),
    ChatResponse(
        done=True, done_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=7), model="m:1b",
        node="http://n:11434",
    ),
)  # fmt: skip


@pytest.fixture
def runtime():
    made = Runtime()
    yield made
    made.close()


def asks(hears, tracing, runtime, client, ask):
    """A run whose coroutine on the loop asks something of models; its claim ends, whatever happens."""
    tell_of_models(SimpleNamespace(client=client, joiner=client), tracing)
    run(hears, task(), SUCCESS, answer(), lambda: runtime.run(ask(client)))


async def listen(client):
    async with aclosing(client.chat("SECRET", model="m:1b")) as chunks:
        return [chunk.content async for chunk in chunks]


def test_a_call_of_a_model_is_a_child_of_its_claim_on_another_thread(hears, tracing, told, runtime):
    async def ask(client):
        assert await client.load("m:1b") == 0.5
        assert await listen(client) == ["", "SECRET", ""]

    asks(hears, tracing, runtime, Client(*WORDS), ask)
    load, chat, claim = told.get_finished_spans()
    assert (load.name, chat.name) == ("load m:1b", "chat m:1b")
    assert load.parent == chat.parent == claim.context
    assert chat.kind is SpanKind.CLIENT
    assert dict(chat.attributes) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "ollama", "gen_ai.request.model": "m:1b",
        "gen_ai.response.model": "m:1b", "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 7, "server.address": "n",
        "server.port": 11434,
    }  # fmt: skip
    [first] = chat.events
    assert first.name == "first_token"
    assert chat.start_time <= first.timestamp <= chat.end_time
    assert "SECRET" not in chat.to_json() + claim.to_json()


def test_an_embedding_is_a_child_of_its_claim(hears, tracing, told, runtime):
    asks(hears, tracing, runtime, Client(), lambda client: client.embed(["SECRET", "b"], model="e"))
    call, claim = told.get_finished_spans()
    assert (call.name, call.parent) == ("embeddings e", claim.context)
    assert call.attributes["gaelp.texts"] == 2
    assert call.attributes["gen_ai.usage.input_tokens"] == 9


def test_an_answer_that_fails_or_is_left_early_ends_its_span(hears, tracing, told, runtime):
    async def ask(client):
        with pytest.raises(NodeFailed):
            await listen(client)
        async with aclosing(client.chat("hi", model="m:1b")) as chunks:
            await anext(chunks)

    asks(hears, tracing, runtime, Client(*WORDS[:2], error=NodeFailed("SECRET")), ask)
    broken, left, _ = told.get_finished_spans()
    assert broken.attributes["error.type"] == "NodeFailed"
    assert left.status.status_code is StatusCode.UNSET
    assert "SECRET" not in broken.to_json()


async def test_what_is_asked_outside_of_runs_is_nobodys(tracing, told):
    client = Client(*WORDS)
    tell_of_models(SimpleNamespace(client=client, joiner=client), tracing)
    await listen(client)
    await client.load("m:1b")
    await client.embed(["a"], model="e")
    assert told.get_finished_spans() == ()


def test_two_runs_at_once_do_not_take_each_others_calls(hears, tracing, told, runtime):
    met = asyncio.Barrier(2)

    async def ask(client):
        await met.wait()
        await listen(client)

    client = Client(*WORDS)
    tell_of_models(SimpleNamespace(client=client, joiner=client), tracing)
    headers = [{"traceparent": f"00-{pair * 16}-{'cd' * 8}-01"} for pair in ("aa", "bb")]
    both = [
        Thread(
            target=run, args=(hears, task(headers=each), SUCCESS, answer(), lambda: runtime.run(ask(client)))
        )
        for each in headers
    ]
    for one in both:
        one.start()
    for one in both:
        one.join(10)
    spans = told.get_finished_spans()
    claims = {span.context.span_id: span.context.trace_id for span in spans if span.kind is SpanKind.CONSUMER}
    calls = [span for span in spans if span.kind is SpanKind.CLIENT]
    assert len(claims) == len(calls) == 2
    assert all(claims[call.parent.span_id] == call.context.trace_id for call in calls)


def test_lines_of_the_log_tell_the_current_span(tracing):
    assert tracing.ids() == {}
    with tracing.sending(INVOKE) as headers:
        assert tracing.ids()["trace_id"] == headers["traceparent"].split("-")[1]


@pytest.fixture
def provided(monkeypatch):
    """The providers that programs of ours would have set for all of their process."""
    made = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    yield made
    for provider in made:
        provider.shutdown()


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, "gaelp-beat"),
        ({"OTEL_SERVICE_NAME": "night"}, "night"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=day,zone=7"}, "day"),
    ],
)
def test_a_program_says_who_it_is_unless_somebody_has_said(
    tracing, provided, monkeypatch, variables, service
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing.export("gaelp-beat", "one")
    [provider] = provided
    assert provider.resource.attributes["service.name"] == service
    assert provider.resource.attributes["service.instance.id"] == "one"


def test_a_program_that_was_started_with_a_provider_keeps_it(tracing, provided, monkeypatch):
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: "somebody else's")
    tracing.export("gaelp-worker", "one")
    assert provided == []


def test_a_variable_that_cannot_be_right_is_refused_in_one_sentence(tracing, provided, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "-1")
    with pytest.raises(SettingsError, match=r"^GAELP_TRACES: .*OTEL_.*schedule_delay.*\.$"):
        tracing.export("gaelp-worker", "one")


def test_of_a_collector_that_is_away_the_log_tells_once_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gaelp_tasks.tracing.monotonic", lambda: now[0])
    seldom, record = Seldom(), logging.makeLogRecord({})
    passed = []
    for now[0] in (0.0, 1.0, 59.0, 61.0, 62.0):
        passed.append(seldom.filter(record))
    assert passed == [True, False, False, True, False]


def test_the_end_of_a_program_does_not_wait_for_a_collector_that_is_away():
    never = Event()
    finish(never.wait)  # or the test would hang
    never.set()


def test_traces_without_the_extra_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "gaelp_tasks.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"^GAELP_TRACES: .*gaelp-tasks\[otel\]'\.$"):
        GaelpApp.__dict__["tracing"].func(None)


UNASKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"opentelemetry", "structlog"}:
            frame = sys._getframe(1)
            while "importlib" in frame.f_globals["__name__"]:
                frame = frame.f_back
            print(frame.f_globals["__name__"])
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
from gaelp_tasks import app, errors, invoke_agent
import gaelp_tasks.logs, gaelp_workers.app, gaelp_beat.scheduler, gaelp_tasks.cli.app
app.log.setup("INFO")
try:
    invoke_agent.delay("hi")
except errors.BrokerUnavailable:
    print("redis was asked")
"""


def test_who_asks_for_neither_traces_nor_json_needs_no_library_of_theirs():
    done = subprocess.run(
        [sys.executable, "-c", UNASKED],
        env={
            "GAELP_BROKER_URL": "redis://127.0.0.1:1/0",
            "GAELP_CONNECT_TIMEOUT_S": "1",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *askers, last = done.stdout.splitlines()
    assert last == "redis was asked", done.stderr
    # redis-py looks by itself whether they are there
    assert all(name.startswith("redis.") for name in askers), askers
