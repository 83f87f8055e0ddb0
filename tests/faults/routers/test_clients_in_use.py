"""Slots, looks and probes of a client: while it is used, when it is left, closed or forgotten."""

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from contextlib import aclosing

import pytest

from gaelp_tasks.clients import DistributedOllamaClient, watch
from support.answers import TEXT, answer_of
from support.faulty_node import became, break_down, hang
from support.node_faults import LIMITS, asked
from support.scripted_server import CHAT_MODEL

# --- load -------------------------------------------------------------------------------------------


async def test_no_node_is_overfilled_while_another_has_a_free_slot(started, routing):
    nodes = await started(2)
    held = asyncio.Event()

    async def hold(request, reply):
        await held.wait()
        reply.head()
        reply.last()
        reply.end()

    for node in nodes:
        node.on("/api/chat", hold)
    async with DistributedOllamaClient(CHAT_MODEL, routing(nodes, slots=2), limits=LIMITS) as client:
        calls = [asyncio.create_task(answer_of(client)) for _ in range(4)]
        await became(lambda: sum(asked(nodes)) == 4)
        assert asked(nodes) == [2, 2]
        calls += [asyncio.create_task(answer_of(client)) for _ in range(2)]
        await became(lambda: sum(asked(nodes)) == 6)  # all are full: it queues at the nodes
        held.set()
        await asyncio.gather(*calls)


async def test_the_nodes_can_be_changed_while_calls_are_in_flight(started, routing):
    [old, new] = await started(2)
    held = asyncio.Event()

    async def hold(request, reply):
        reply.head()
        reply.token("still")
        await held.wait()
        reply.token(" here")
        reply.last()
        reply.end()

    old.on("/api/chat", hold)
    async with DistributedOllamaClient(CHAT_MODEL, routing([old]), limits=LIMITS) as client:
        async with aclosing(client.chat("Hi")) as stream:
            assert (await anext(stream)).content == "still"
            client.router.set_nodes([new.url])
            assert await answer_of(client) == (TEXT, new.url)
            held.set()
            assert "".join([chunk.content async for chunk in stream]) == " here"
        assert client.router.nodes() == (new.url,)
        assert await answer_of(client) == (TEXT, new.url)


# --- leaving ----------------------------------------------------------------------------------------


async def test_a_closed_client_leaves_no_look_and_no_probe_behind(nodes, routing):
    before = asyncio.all_tasks()
    client = DistributedOllamaClient(CHAT_MODEL, routing(nodes), limits=LIMITS)
    nodes[0].freeze()
    await nodes[1].black_hole()
    await asyncio.gather(*(answer_of(client) for _ in range(4)))
    await client.close()
    await client.close()
    waiting = {task for task in asyncio.all_tasks() - before if "Watch" in repr(task)}
    assert not waiting
    number = sum(asked(nodes, "/api/tags"))
    assert await answer_of(client) == (TEXT, nodes[2].url)  # and it can be used again
    assert sum(asked(nodes, "/api/tags")) > number
    await client.close()


async def test_a_node_that_dies_is_noticed_before_a_call_meets_it(nodes, client, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.05)
    nodes[0].on("/api/chat", hang)
    held = asyncio.create_task(answer_of(client))  # the client is in use
    await became(lambda: nodes[0].asked() == 1)
    await nodes[2].kill()
    await became(lambda: not client.router.snapshot()[2].healthy(CHAT_MODEL))
    await nodes[2].restart()
    await became(lambda: client.router.snapshot()[2].healthy(CHAT_MODEL))
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)


async def test_an_unused_client_asks_nothing(nodes, client, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.05)
    await answer_of(client)
    [ours] = client._watches.values()
    await became(lambda: ours._round_timer is None and not ours._looks)
    before = sum(asked(nodes, "/api/tags"))
    await answer_of(client)
    await became(lambda: sum(asked(nodes, "/api/tags")) == before + 3)


async def test_a_forgotten_client_is_gone_with_its_looks_and_probes(nodes, routing):
    client = DistributedOllamaClient(CHAT_MODEL, routing(nodes), limits=LIMITS)
    nodes[0].freeze()
    await nodes[1].kill()
    for _ in range(4):
        await answer_of(client)
    gone = weakref.ref(client)
    del client

    def collected():
        gc.collect()
        return gone() is None

    await became(collected)


async def test_a_call_that_is_left_gives_its_slot_back(nodes, client):
    for node in nodes:
        node.on("/api/chat", hang)
    task = asyncio.create_task(answer_of(client))
    await became(lambda: sum(asked(nodes)) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    states = client.router.snapshot()
    assert [(node.in_flight, node.healthy(CHAT_MODEL)) for node in states] == [(0, True)] * 3


async def test_a_client_serves_one_loop_after_the_other(nodes, routing):
    client = DistributedOllamaClient(CHAT_MODEL, routing(nodes), limits=LIMITS)

    async def use_and_close():
        text, _ = await answer_of(client)
        await client.close()
        return text

    for _ in range(2):
        assert await asyncio.to_thread(asyncio.run, use_and_close()) == TEXT
    assert await use_and_close() == TEXT


async def test_what_failed_on_one_loop_is_probed_on_the_next(nodes, routing):
    client = DistributedOllamaClient(CHAT_MODEL, routing(nodes), limits=LIMITS)
    nodes[0].on("/api/chat", break_down)

    async def use_and_close():
        await answer_of(client)
        await client.close()

    await asyncio.to_thread(asyncio.run, use_and_close())
    assert not client.router.snapshot()[0].healthy(CHAT_MODEL)
    nodes[0].server.heal()
    await answer_of(client)
    await became(lambda: client.router.snapshot()[0].healthy(CHAT_MODEL))
    await client.close()


async def test_a_synchronous_script_that_closes_nothing_ends_without_a_word(started):
    [frozen, healthy] = await started(2)
    frozen.freeze()
    script = (
        "import sys\nfrom gaelp_tasks.agents import ChatAgent\n"
        "from gaelp_tasks.clients import DistributedOllamaClient, Limits\n"
        "client = DistributedOllamaClient('tiny', sys.argv[1:], limits=Limits(answer_s=1.0))\n"
        "print(ChatAgent(client).run_sync('Hi'), ChatAgent(client).run_sync('Hi'))\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, frozen.url, healthy.url]
    environment = {"PATH": os.environ["PATH"]}
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{TEXT} {TEXT}\n", "", 0)
