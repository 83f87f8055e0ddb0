"""Nodes that die, hang, vanish, refuse and come back, through every router: calls go to a healthy one."""

import asyncio
import time
from contextlib import aclosing

import pytest

from gaelp_tasks.clients import DistributedOllamaClient, Limits
from gaelp_tasks.clients.way import Way
from gaelp_tasks.errors import NodeBusy, NodeError, NodeFailed, NodeUnreachable, StreamTruncated
from support.answers import TEXT, answer_of
from support.faulty_node import became, die_in_mid_stream, hang
from support.node_faults import (
    FAULTS,
    LIMIT_S,
    LIMITS,
    asked,
    be_slow,
    black_hole,
    drop_all,
    fail_all,
    freeze,
    kill,
    refuse_all,
    say_nothing,
)
from support.scripted_server import CHAT_MODEL

CALLS = 2000


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
