"""Calls of models are children of the claim they belong to, whatever thread they are on."""

import asyncio
from contextlib import aclosing
from threading import Thread
from types import SimpleNamespace

import pytest
from celery.states import SUCCESS
from opentelemetry.trace import SpanKind, StatusCode

from gaelp_tasks.clients import ChatResponse, Embeddings
from gaelp_tasks.errors import NodeFailed
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.runtime import Runtime
from gaelp_workers.tracing import tell_of_models
from support.traced import answer, run, task


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
