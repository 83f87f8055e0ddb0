"""Nodes that die, hang, vanish, refuse and come back, seen through every router: calls go to a healthy one.

SOLLOL is among them where it is installed: `make sollol`.
"""

import asyncio
import gc
import os
import subprocess
import sys
import time
import weakref
from contextlib import AsyncExitStack, aclosing
from importlib.util import find_spec

import pytest

from gaelp_tasks.clients import DistributedOllamaClient, Limits, watch
from gaelp_tasks.clients.routers import router_named
from gaelp_tasks.clients.way import Way
from gaelp_tasks.errors import (
    InvalidInvocation,
    ModelMissing,
    NodeBusy,
    NodeError,
    NodeFailed,
    NodeUnreachable,
    RequestRefused,
    StreamTruncated,
)
from support.faulty_node import (
    FaultyNode,
    became,
    break_down,
    busy,
    die_before_a_word,
    die_in_mid_stream,
    drop,
    hang,
)
from support.scripted_server import CHAT_MODEL, EMBED_MODEL, TOKENS

TEXT = "".join(TOKENS)
NOWHERE = "no-such-model:1b"
CALLS = 2000
#: generous for a busy machine, and far below the limits of a first token
LIMIT_S = 1.5
LIMITS = Limits(connect_s=LIMIT_S, answer_s=LIMIT_S)

ROUTERS = ["least-loaded", *(["sollol"] if find_spec("sollol") else [])]


@pytest.fixture(params=ROUTERS)
def routing(request):
    """A router by its name, over these nodes."""

    def make(nodes, **given):
        return router_named(request.param, [node.url for node in nodes], **given)

    return make


@pytest.fixture
async def started():
    """Start nodes; all end with the test."""
    async with AsyncExitStack() as stack:

        async def start(number):
            return [await stack.enter_async_context(FaultyNode()) for _ in range(number)]

        yield start


@pytest.fixture
async def nodes(started):
    return await started(3)


@pytest.fixture
async def client(nodes, routing):
    router = routing(nodes, slots=4)
    async with DistributedOllamaClient(CHAT_MODEL, router, EMBED_MODEL, limits=LIMITS) as made:
        yield made


async def answer_of(client, **options):
    """Text, and the node that gave it."""
    async with aclosing(client.chat("Why is the sky blue?", **options)) as stream:
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].done
    return "".join(chunk.content for chunk in chunks), chunks[-1].node


def asked(nodes, path="/api/chat"):
    return [node.asked(path) for node in nodes]


async def kill(node):
    await node.kill()


async def freeze(node):
    node.freeze()


async def black_hole(node):
    await node.black_hole()


async def refuse_all(node):
    node.on("/api/chat", busy)


async def fail_all(node):
    node.on("/api/chat", break_down)


async def drop_all(node):
    node.on("*", drop)


async def say_nothing(node):
    node.on("/api/chat", die_before_a_word)


async def be_slow(node):
    async def slowly(request, reply):
        await asyncio.sleep(0.05)
        await node.server._healthy(request, reply)

    node.on("*", slowly)


FAULTS = [kill, freeze, black_hole, refuse_all, fail_all, drop_all, say_nothing]


# --- the figure -------------------------------------------------------------------------------------


async def test_no_call_of_two_thousand_fails_while_one_node_after_the_other_does(nodes, client, monkeypatch):
    done, all_over = 0, False
    failures, met = [], []
    failed = Way.failed

    def seen(way, lease, error, **given):
        met.append(type(error))
        failed(way, lease, error, **given)

    monkeypatch.setattr(Way, "failed", seen)

    async def caller():
        nonlocal done
        while done < CALLS or not all_over:
            done += 1
            try:
                if done % 4:
                    assert (await answer_of(client))[0] == TEXT
                else:
                    assert len((await client.embed(["a", "b"])).vectors) == 2
            except NodeError as error:
                failures.append(error)

    async def trouble():
        """Each fault until a call has met it; the other nodes are healthy then."""
        nonlocal all_over
        for at, fault in enumerate([*FAULTS, be_slow]):
            node = nodes[at % len(nodes)]
            await became(lambda: not any(state.failed or state.busy for state in client.router.snapshot()))
            done_before, met_before = done, len(met)
            await fault(node)
            await became(
                lambda: done >= done_before + 50 and (fault is be_slow or len(met) > met_before)  # noqa: B023  awaited at once
            )
            await node.heal()
        all_over = True

    async with asyncio.TaskGroup() as running:
        running.create_task(trouble())
        for _ in range(24):
            running.create_task(caller())
    assert done >= CALLS
    assert failures == []
    assert set(met) == {NodeUnreachable, NodeBusy, NodeFailed}
    assert min(asked(nodes)) > 0


# --- one fault at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_call_on_a_failing_node_is_answered_by_another_within_one_limit(nodes, client, fault):
    for node in nodes[:-1]:
        await fault(node)
    begun = time.monotonic()
    assert await answer_of(client) == (TEXT, nodes[-1].url)
    assert (await client.embed(["a"])).node == nodes[-1].url or fault in {refuse_all, fail_all, say_nothing}
    assert time.monotonic() - begun < 2 * LIMIT_S


@pytest.mark.parametrize("fault", [kill, freeze, black_hole, fail_all, drop_all, say_nothing])
async def test_a_failed_node_is_left_alone_until_a_probe_succeeds_and_then_used_again(nodes, client, fault):
    await fault(nodes[0])
    assert (await answer_of(client))[1] != nodes[0].url
    assert not client.router.snapshot()[0].healthy(CHAT_MODEL)  # the first call of all met it
    before = nodes[0].asked()
    for _ in range(20):
        await answer_of(client)
    assert nodes[0].asked() - before <= 8  # no call, only the probes of these moments
    await nodes[0].heal()
    await became(lambda: client.router.snapshot()[0].healthy(CHAT_MODEL))
    before = nodes[0].asked()
    await asyncio.gather(*(answer_of(client) for _ in range(12)))
    assert nodes[0].asked() > before


async def test_a_restarted_node_is_used_again(nodes, client):
    await nodes[0].kill()
    await asyncio.gather(*(answer_of(client) for _ in range(6)))
    await nodes[0].restart()
    await became(lambda: client.router.snapshot()[0].healthy(CHAT_MODEL))
    await asyncio.gather(*(answer_of(client) for _ in range(12)))
    assert len(nodes[0].server.asked("/api/chat")) > 0


async def test_an_answer_that_breaks_off_is_not_begun_again_elsewhere(nodes, client):
    for node in nodes:
        node.on("/api/chat", die_in_mid_stream)
    async with aclosing(client.chat("Hi")) as stream:
        assert [(await anext(stream)).content for _ in range(2)] == ["Once", " upon"]
        with pytest.raises((StreamTruncated, NodeUnreachable)) as caught:
            await anext(stream)
    assert sum(asked(nodes)) == 1
    assert caught.value.node in {node.url for node in nodes}


async def test_a_stopped_process_costs_a_look_and_not_the_limit_of_a_first_token(started, routing):
    [frozen, healthy] = await started(2)
    frozen.freeze()
    async with DistributedOllamaClient(CHAT_MODEL, routing([frozen, healthy]), limits=LIMITS) as client:
        assert client.client(frozen.url).limits.first_token_s > 100 * LIMIT_S
        for _ in range(4):
            assert await answer_of(client) == (TEXT, healthy.url)


async def test_a_model_that_gives_no_first_token_costs_its_limit_once(started, routing):
    [hung, healthy] = await started(2)
    hung.on("/api/chat", hang)  # it answers every look
    limits = Limits(connect_s=LIMIT_S, answer_s=LIMIT_S, first_token_s=0.2, load_s=0.2)
    async with DistributedOllamaClient(CHAT_MODEL, routing([hung, healthy]), limits=limits) as client:
        for _ in range(5):
            assert await answer_of(client) == (TEXT, healthy.url)
        assert not client.router.snapshot()[0].healthy(CHAT_MODEL)
        hung.server.heal()
        await became(lambda: client.router.snapshot()[0].healthy(CHAT_MODEL))


async def test_a_hung_model_blocks_no_other_call(started, routing):
    [hung, healthy] = await started(2)
    hung.on("/api/chat", hang)
    async with DistributedOllamaClient(CHAT_MODEL, routing([hung, healthy]), limits=LIMITS) as client:
        first = asyncio.create_task(answer_of(client))
        await became(lambda: sum(asked([hung, healthy])) == 1)
        others = [asyncio.create_task(answer_of(client)) for _ in range(10)]
        waiting = {first, *others}
        while len(waiting) > hung.asked():  # all but those that wait on the hung node itself
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert hung.asked() < 11
        hung.server.heal()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert [node.in_flight for node in client.router.snapshot()] == [0, 0]


# --- what is nobody's fault, or the caller's ----------------------------------------------------------


async def test_all_busy_is_busy_with_the_shortest_wait_that_was_asked_for(nodes, client):
    for wait_s, node in zip((30, 7, 90), nodes, strict=True):

        async def refuse(request, reply, wait_s=wait_s):
            reply.whole({"error": "busy"}, 503, **{"Retry-After": str(wait_s)})

        node.on("/api/chat", refuse)
    with pytest.raises(NodeBusy) as caught:
        await answer_of(client)
    assert caught.value.retry_after_s == 7
    assert asked(nodes) == [1, 1, 1]


async def test_a_busy_node_among_dead_ones_is_busy_and_not_dead(nodes, client):
    await nodes[0].kill()
    await nodes[1].kill()
    nodes[2].on("/api/chat", busy)
    with pytest.raises(NodeBusy):
        await answer_of(client)


@pytest.mark.parametrize(("fault", "error"), [(kill, NodeUnreachable), (fail_all, NodeFailed)])
async def test_when_all_have_failed_each_was_asked_at_most_once(nodes, client, fault, error):
    for node in nodes:
        await fault(node)
    with pytest.raises(error):
        await answer_of(client)
    assert max(asked(nodes)) <= 1


async def test_a_request_that_a_node_refuses_is_asked_nowhere_else(nodes, client):
    async def refuse(request, reply):
        reply.whole({"error": "tools are not supported"}, 400)

    for node in nodes:
        node.on("/api/chat", refuse)
    with pytest.raises(RequestRefused):
        await answer_of(client)
    assert sum(asked(nodes)) == 1
    assert all(node.healthy(CHAT_MODEL) for node in client.router.snapshot())


async def test_bad_input_reaches_no_node_and_leaves_no_call_behind(nodes, client):
    with pytest.raises(InvalidInvocation):
        await answer_of(client, num_ctx=5)
    assert (sum(asked(nodes)), [node.in_flight for node in client.router.snapshot()]) == (0, [0, 0, 0])


async def test_a_missing_model_is_asked_of_the_one_node_that_has_it(nodes, client):
    async def lists_it(request, reply):
        reply.whole({"models": [{"name": "rare:1b"}]})

    async def has_it(request, reply):
        reply.head()
        reply.last()
        reply.end()

    nodes[1].on("/api/tags", lists_it)
    nodes[1].on("/api/chat", has_it)
    for _ in range(3):
        assert await answer_of(client, model="rare:1b") == ("", nodes[1].url)
    assert sum(asked(nodes)) <= 4  # at most one guess, and only the first time
    assert nodes[1].asked() == 3


async def test_a_model_that_no_node_has_is_one_sentence_after_one_question(nodes, client):
    with pytest.raises(ModelMissing, match=f"None of the 3 nodes has the model '{NOWHERE}'"):
        await answer_of(client, model=NOWHERE)
    assert sum(asked(nodes)) == 1


async def test_a_model_may_be_on_the_node_that_is_away(nodes, client):
    await nodes[0].kill()
    with pytest.raises(NodeUnreachable):
        await answer_of(client, model=NOWHERE)


async def test_a_model_that_fails_on_a_node_leaves_its_other_models_in_use(started, routing):
    [node, other] = await started(2)

    async def fails(request, reply):
        if request.json()["model"] == CHAT_MODEL:
            await break_down(request, reply)
        else:
            await node.server._healthy(request, reply)

    node.on("/api/chat", fails)
    async with DistributedOllamaClient(
        CHAT_MODEL, routing([node, other]), EMBED_MODEL, limits=LIMITS
    ) as client:
        for _ in range(4):
            assert await answer_of(client) == (TEXT, other.url)
        [state, _] = client.router.snapshot()
        assert (state.healthy(CHAT_MODEL), state.healthy(EMBED_MODEL)) == (False, True)


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
