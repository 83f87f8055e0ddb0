"""One trace from a service through Redis to the model, as a collector would get it; logs that name it."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from celery import Celery

from gaelp_beat import fixed
from gaelp_tasks import app
from support.beat import BeatProcess
from support.otlp_receiver import OtlpReceiver
from support.scripted_server import CHAT_MODEL, Reply, Request, ScriptedServer
from support.worker import GAELP

pytestmark = [pytest.mark.redis, pytest.mark.slow]

WORD = "pomegranate"  #: of every prompt and of every answer
QUICK = {"GAELP_RETRY_BASE_S": "0.05", "GAELP_DEFAULT_MODEL": CHAT_MODEL, "GAELP_NUM_PARALLEL": "1"}
TRACE, SPAN = "ab" * 16, "cd" * 8  #: of a plain sender that is traced by something else

#: traced as services are: a provider of its own, and a span around what it does
SERVICE = """
import os, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
from gaelp_tasks import invoke_agent
with trace.get_tracer("shop").start_as_current_span("order"):
    handle = invoke_agent.delay(sys.argv[1], tier="batch")
handle.get(timeout=30)
print(handle.id)
"""


@pytest.fixture
async def node():
    """Answers; what shall fail fails once, before its first token."""
    failed = set()

    async def answer(request: Request, reply: Reply) -> None:
        said = request.json()["messages"][-1]["content"]
        if "fail" in said and said not in failed:
            failed.add(said)
            reply.whole({"error": "out of order"}, 500)
            return
        reply.head()
        reply.token(WORD)
        reply.last(prompt_eval_count=7, eval_count=2)
        reply.end()

    async with ScriptedServer() as server:
        server.on("/api/chat", answer)
        yield server


async def test_a_trace_goes_from_a_service_through_the_queue_to_the_model(start_worker, node, broker):
    with OtlpReceiver() as receiver:
        await asyncio.to_thread(story, start_worker, node.url, broker, receiver)


def story(start_worker, node, broker, receiver):
    """In one thread: Celery's results belong to the thread that asked."""
    traced = {"GAELP_TRACES": "yes", **receiver.env}
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_LOG_FORMAT="json", program=GAELP, **traced, **QUICK)
    order = serve({"GAELP_BROKER_URL": broker.url, **traced}, f"{WORD}, and fail once")
    plain = Celery(broker=broker.url, backend=broker.url)
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    sent = plain.send_task("gaelp.invoke_agent", [WORD], queue="interactive", headers=headers)
    sent.get(timeout=30)
    receiver.spans(all_have_ended)
    the_service_is_followed(receiver.got, order, worker.name)
    the_plain_sender_is_followed(receiver.got, sent.id)
    worker.send(signal.SIGTERM)
    assert worker.wait(within_s=20) == 0
    the_log_names_both(worker.log(), receiver.got, order, sent.id)
    assert WORD not in str(receiver.got)


def serve(env, prompt):
    """The id of the invocation that a traced service asks for."""
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, prompt],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def of(span, name):
    return span.about.get(name)


def all_have_ended(spans):
    """Both invocations were answered, and their spans came."""
    return [of(span, "gaelp.outcome") for span in claims(spans)].count("done") == 2


def claims(spans):
    return [span for span in spans if span.kind == "CONSUMER" and "gen_ai.operation.name" in span.about]


def the_service_is_followed(spans, order, worker):
    """order -> send -> (claim that failed, claim that was answered) -> load, chat: one trace."""
    [first] = [span for span in spans if span.name == "order"]
    assert (first.service, first.parent_id) == ("shop", "")
    [sent] = [span for span in spans if span.kind == "PRODUCER" and of(span, "messaging.message.id") == order]
    assert (sent.name, sent.service, sent.parent_id) == ("send batch.any", "shop", first.span_id)
    failed, done = (span for span in claims(spans) if of(span, "messaging.message.id") == order)
    for claim in (failed, done):
        assert (claim.name, claim.service) == ("process batch.any", "gaelp-worker")
        assert (claim.trace_id, claim.parent_id) == (first.trace_id, sent.span_id)
        assert (of(claim, "gaelp.tier"), of(claim, "messaging.client.id")) == ("batch", worker)
        assert 0 <= of(claim, "gaelp.queue_wait_s") < 60
    assert (of(failed, "gaelp.outcome"), failed.is_error) == ("retry", True)
    assert of(failed, "error.type") == "NodeFailed"
    assert (of(failed, "gaelp.claim"), of(done, "gaelp.claim")) == (1, 2)
    assert (of(failed, "gaelp.attempt"), of(done, "gaelp.attempt")) == (1, 2)
    assert not done.is_error
    assert (of(done, "gen_ai.usage.input_tokens"), of(done, "gen_ai.usage.output_tokens")) == (7, 2)
    [load] = [span for span in spans if span.parent_id == done.span_id and span.name.startswith("load")]
    [chat] = [span for span in spans if span.parent_id == done.span_id and span.name.startswith("chat")]
    assert load.trace_id == chat.trace_id == first.trace_id
    assert (chat.name, chat.events) == (f"chat {CHAT_MODEL}", ("first_token",))


def the_plain_sender_is_followed(spans, task_id):
    """The worker goes on in the trace of a sender that has nothing of ours."""
    [claim] = [span for span in claims(spans) if of(span, "messaging.message.id") == task_id]
    assert (claim.trace_id, claim.parent_id) == (TRACE, SPAN)
    assert of(claim, "gaelp.outcome") == "done"


def the_log_names_both(log, spans, *invocations):
    """Every line is JSON, those of runs tell their invocation and trace, and none what was asked."""
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines)
    assert WORD not in log
    for task_id in invocations:
        traces = {of(span, "messaging.message.id"): span.trace_id for span in claims(spans)}
        own = [line for line in lines if line.get("invocation_id") == task_id]
        assert any("received" in line["event"] for line in own)
        [ended] = [line for line in own if "succeeded" in line["event"]]
        assert ended["trace_id"] == traces[task_id]
        assert {"agent", "tier", "claim", "worker"} <= ended.keys()


def test_a_run_of_a_schedule_begins_a_trace_in_a_beat_whose_log_is_json(broker, redis, tmp_path):
    entry = "record history"
    redis.hset(app.keys.beat_published, fixed.id_of(entry), 0)  # long due
    settings = {"GAELP_BROKER_URL": broker.url, "GAELP_TRACES": "yes", "GAELP_LOG_FORMAT": "json"}
    with OtlpReceiver() as receiver:
        program = ("gaelp_tasks.cli", "beat")
        with BeatProcess(tmp_path, program=program, **settings, **receiver.env) as beat:
            receiver.spans(bool)
            assert beat.stop() == 0
        sent = receiver.got[0]
    assert (sent.service, sent.kind, sent.parent_id) == ("gaelp-beat", "PRODUCER", "")
    assert sent.name == "send gaelp.maintenance.record_history"
    lines = [json.loads(line) for line in beat.log().splitlines()]
    assert any(f"Entry {entry} is due" in line["event"] for line in lines)
