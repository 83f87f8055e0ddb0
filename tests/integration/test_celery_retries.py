"""A run that is repeated keeps its place in chains, groups and chords; each is counted once."""

import asyncio
from itertools import count

import pytest
from celery import chain, chord, group

from gaelp_tasks import app, embed, invoke_agent
from support.eventually import eventually
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis]

QUICK = {"GAELP_RETRY_BASE_S": "0.05", "GAELP_SNOOZE_S": "0.05", "GAELP_DEFAULT_MODEL": "tiny"}


@pytest.fixture
async def node():
    """Each second question meets a node that is out of order; the first of all does, too."""
    number = count()

    async def answer(request: Request, reply: Reply) -> None:
        if next(number) % 2 == 0:
            reply.whole({"error": "out of order"}, 500)
        else:
            reply.head()
            reply.token(request.json()["messages"][-1]["content"] + "!")
            reply.last(eval_count=1)
            reply.end()

    async with ScriptedServer() as server:
        server.on("/api/chat", answer)
        yield server


@pytest.fixture
async def worker(start_worker, node):
    return await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, GAELP_NUM_PARALLEL="1", **QUICK)


async def test_a_chain_a_group_and_a_chord_survive_the_retries_of_their_members(worker):
    await asyncio.to_thread(put_together)


def put_together():
    """In one thread: Celery's results belong to the thread that asked."""
    chained = chain(invoke_agent.s("a"), invoke_agent.s(), invoke_agent.s()).apply_async()
    result = chained.get(timeout=30)
    assert (result["text"], result["attempts"]) == ("a!!!", 2)
    assert result["id"] == chained.id

    many = group(invoke_agent.s(letter) for letter in "abc").apply_async()
    assert [one["text"] for one in many.get(timeout=30)] == ["a!", "b!", "c!"]

    together = chord([invoke_agent.s(letter) for letter in "abc"], invoke_agent.s()).apply_async()
    result = together.get(timeout=30)
    assert result["text"] == "c!!", "the last text was the last message of the body"
    eventually(lambda: counting(together) == {".c": "done"}, what="each member was counted, none twice")

    linked = invoke_agent.apply_async(["a"], link=invoke_agent.s())
    linked.get(timeout=30)
    [callback] = linked.children
    assert callback.get(timeout=30)["text"] == "a!!"


def counting(result):
    """What Redis keeps of a chord's counting; Celery clears it once the body is published."""
    prefix = f"celery-taskset-meta-{result.parent.id}"
    keys = [key for key in app.redis.scan_iter(match=f"{prefix}.*") if app.redis.type(key) == "string"]
    return {key.removeprefix(prefix): app.redis.get(key) for key in keys}


async def test_what_was_revoked_while_no_worker_lived_is_not_run(start_worker, node):
    one, other = invoke_agent.delay("a"), invoke_agent.delay("b")
    several = group(invoke_agent.s(letter) for letter in "cd").apply_async()
    one.revoke()
    app.control.revoke(other.id)
    several.revoke()
    await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, **QUICK)
    results = [await asyncio.to_thread(handle.get, timeout=30) for handle in (one, other, *several)]
    assert {result["stop_reason"] for result in results} == {"cancelled"}
    assert node.asked("/api/chat") == []


async def test_an_embedding_of_a_chords_texts_is_made_once(worker, node):
    body = await asyncio.to_thread(chord([invoke_agent.s("a"), invoke_agent.s("b")], embed.s()).apply_async)
    assert len((await asyncio.to_thread(body.get, timeout=30))["embeddings"]) == 2
    asked = [request.json()["input"] for request in node.requests if request.path == "/api/embed"]
    assert [texts for texts in asked if texts] == [["a!", "b!"]]
