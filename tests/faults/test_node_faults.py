"""A node that dies, hangs, is busy or stalls, seen through a real worker: every run gets its answer."""

import asyncio
from itertools import count

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.errors import NodeFailed, StreamRestarted
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis]

QUICK = {
    "GAELP_RETRY_BASE_S": "0.05",
    "GAELP_SNOOZE_S": "0.05",
    "GAELP_DEFAULT_MODEL": "tiny",
    "GAELP_FIRST_TOKEN_TIMEOUT_S": "1",
    "GAELP_LOAD_TIMEOUT_S": "5",
}


@pytest.fixture
async def node():
    async with ScriptedServer() as server:
        yield server


@pytest.fixture
async def worker(start_worker, node):
    return await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, **QUICK)


async def result_of(handle):
    return await asyncio.to_thread(handle.get, timeout=30)


def once(fault):
    """The fault at the first request, a healthy answer afterwards."""
    number = count()

    async def handler(request: Request, reply: Reply) -> None:
        if next(number) == 0:
            await fault(request, reply)
        else:
            reply.head()
            reply.token("fine")
            reply.last(eval_count=1)
            reply.end()

    return handler


async def refuse(request: Request, reply: Reply) -> None:
    reply.whole({"error": "server busy"}, 503)


async def break_down(request: Request, reply: Reply) -> None:
    reply.whole({"error": "out of order"}, 500)


async def die_in_mid_stream(request: Request, reply: Reply) -> None:
    reply.head()
    reply.token("half")
    reply.reset()


async def say_an_error(request: Request, reply: Reply) -> None:
    reply.head()
    reply.line({"error": "the runner has died"})
    reply.end()


async def end_without_done(request: Request, reply: Reply) -> None:
    reply.head()
    reply.token("half")
    reply.end()


async def say_nothing(request: Request, reply: Reply) -> None:
    await reply.gone.wait()


@pytest.mark.parametrize(
    "fault", [break_down, say_an_error, end_without_done, say_nothing, die_in_mid_stream]
)
async def test_a_run_that_a_node_lets_down_is_run_again(node, worker, fault):
    node.on("/api/chat", once(fault))
    result = await result_of(invoke_agent.delay("Hi"))
    assert (result["text"], result["attempts"], result["stop_reason"]) == ("fine", 2, "stop")


async def test_a_busy_node_costs_no_attempt(node, worker):
    node.on("/api/chat", once(refuse))
    result = await result_of(invoke_agent.delay("Hi"))
    assert (result["text"], result["attempts"]) == ("fine", 1)
    assert len(node.asked("/api/chat")) == 2


async def test_a_node_that_never_recovers_fails_the_run_once_its_attempts_are_spent(node, worker):
    node.on("/api/chat", break_down)
    with pytest.raises(NodeFailed):
        await result_of(invoke_agent.delay("Hi"))
    assert len(node.asked("/api/chat")) == app.settings.retry_attempts


async def test_a_stall_after_the_first_token_keeps_the_text(node, worker):
    async def stall(request: Request, reply: Reply) -> None:
        reply.head()
        reply.token("so far")
        await reply.gone.wait()

    node.on("/api/chat", stall)
    result = await result_of(invoke_agent.delay("Hi", stall_timeout_s=0.3))
    assert (result["text"], result["stop_reason"], result["attempts"]) == ("so far", "stall", 1)


async def test_cancelling_before_the_first_token_closes_the_models_connection(node, worker):
    asked, left = asyncio.Event(), asyncio.Event()

    async def think(request: Request, reply: Reply) -> None:
        asked.set()
        await reply.gone.wait()
        left.set()

    node.on("/api/chat", think)
    handle = invoke_agent.delay("Hi")
    await asyncio.wait_for(asked.wait(), 20)
    await asyncio.to_thread(handle.cancel)
    await asyncio.wait_for(left.wait(), 1.0)
    result = await result_of(handle)
    assert (result["text"], result["stop_reason"]) == ("", "cancelled")


async def test_a_reader_of_a_part_learns_that_the_run_started_over(node, worker):
    go_on = asyncio.Event()

    async def die_when_told(request: Request, reply: Reply) -> None:
        reply.head()
        reply.token("half")
        await go_on.wait()
        reply.reset()

    node.on("/api/chat", once(die_when_told))
    handle = invoke_agent.delay("Hi")
    pieces = handle.astream(timeout=20)
    assert await anext(pieces) == "half"
    go_on.set()
    with pytest.raises(StreamRestarted):
        await anext(pieces)
    assert (await result_of(handle))["text"] == "fine"
    assert [piece async for piece in handle.astream(timeout=20)] == ["fine"], "who comes late sees the whole"


async def test_a_run_longer_than_many_leases_runs_once(start_worker, node):
    go_on = asyncio.Event()

    async def wait_long(request: Request, reply: Reply) -> None:
        reply.head()
        reply.token("at last")
        await go_on.wait()
        reply.last()
        reply.end()

    node.on("/api/chat", wait_long)
    held = {
        "GAELP_OLLAMA_NODES": node.url,
        "GAELP_NUM_PARALLEL": "4",
        "GAELP_LEASE_TTL_S": "0.8",
        **QUICK,
    }
    await asyncio.to_thread(start_worker, **held)
    handle = invoke_agent.delay("Hi")
    assert await anext(handle.astream(timeout=20)) == "at last"
    await asyncio.sleep(8)  # the very thing under test: ten leases
    go_on.set()
    assert (await result_of(handle))["text"] == "at last"
    assert len(node.asked("/api/chat")) == 1
