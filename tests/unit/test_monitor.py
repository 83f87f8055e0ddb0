"""The node's snapshot, its announcement, and cancellations heard."""

import asyncio
import json
import os
from importlib.metadata import version

import pytest
from redis.asyncio.client import Pipeline

from gaelp_tasks.cancellation import Reason, request_cancel
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import NodeUnreachable
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.tasks.resources import Node
from gaelp_workers import monitor
from gaelp_workers.health import Pulse
from gaelp_workers.memory import Reading
from gaelp_workers.monitor import Life, announce, hear_cancellations, sample, sweep_cancellations
from support.fakes import NODE, FakeBroker, Workbench

MEMORY = MemorySnapshot(total_bytes=100, free_bytes=40, source="test")
RESIDENT_BYTES = 7
KEY = f"gaelp:node:w@host:{NODE}"


def measured(resident):
    """Memory as if it had been read, told apart by whether the server answered."""
    return Reading(MEMORY, held_bytes=None if resident is None else RESIDENT_BYTES)


@pytest.fixture
async def bench():
    made = Workbench(
        asyncio.get_running_loop(), FakeBroker(), ScriptedClient(), poll_interval_s=0.001, namespace=""
    )
    yield made
    await made.redis.aclose()


@pytest.fixture
async def duty():
    """`duty(coroutine)` runs it beside the test and ends it with the test."""
    tasks = []

    def begin(coroutine):
        tasks.append(asyncio.create_task(coroutine))
        return tasks[-1]

    yield begin
    for task in tasks:
        await ended(task)


async def ended(task):
    """Cancel until it has ended: in Python 3.11 the wait_for inside redis-py may swallow a cancel."""
    async with asyncio.timeout(10):
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.05)


async def until(look):
    """The first true value that `look` returns."""
    async with asyncio.timeout(10):
        while not (found := look()):
            await asyncio.sleep(0.001)
    return found


async def look(at, number=0, *, slots=3):
    node = at.nodes[number]
    return await sample(Life("w@host", 5.0, "h"), at, node, slots, measured, Pulse(at, node))


def add_node(bench, url):
    client = ScriptedClient()
    bench.at.nodes += (Node(url, client, lambda _: client),)


async def test_a_snapshot_tells_what_the_node_has_and_runs(bench):
    await bench.at.client.load()
    bench.at.runs.enter("a")
    tally = bench.at.tally("a")
    tally.count(NODE, "scripted", 7)
    snapshot = await look(bench.at)
    assert snapshot == NodeSnapshot(
        worker="w@host", pid=os.getpid(), url=NODE, healthy=True,
        version="scripted", models=("scripted",), loaded=("scripted",), slots=3, running=("a",),
        tokens=(7,), memory=MEMORY, held_bytes=RESIDENT_BYTES, started_at=5.0, seen_at=bench.now(),
        release=version("gaelp-tasks"), num_parallel=bench.at.settings.num_parallel, num_ctx=0, holder="h",
    )  # fmt: skip


@pytest.mark.parametrize("question", ["version", "models", "loaded"])
@pytest.mark.parametrize("error", [NodeUnreachable("gone"), TimeoutError()])
async def test_a_node_that_does_not_answer_is_unwell_which_is_no_error(bench, monkeypatch, question, error):
    async def fail():
        raise error

    monkeypatch.setattr(bench.at.client, question, fail)
    snapshot = await look(bench.at)
    assert (snapshot.healthy, snapshot.running, snapshot.models) == (
        False,
        (),
        ("scripted",) * (question == "loaded"),
    )
    assert snapshot.trouble == str(error) or "did not answer" in snapshot.trouble
    assert snapshot.held_bytes is None, "the memory is read without a list of models"


async def test_a_node_that_hangs_is_unwell(bench, monkeypatch):
    monkeypatch.setattr(monitor, "QUESTION_S", 0.01)
    monkeypatch.setattr(bench.at.client, "loaded", lambda: asyncio.Event().wait())
    snapshot = await look(bench.at)
    assert (snapshot.healthy, snapshot.trouble) == (False, f"{NODE} did not answer within 0.01 s.")


async def test_each_of_several_nodes_tells_who_runs_there_and_all_who_runs_nowhere_yet(bench):
    add_node(bench, "http://second")
    for name in "abc":
        bench.at.runs.enter(name)
    tallies = {name: bench.at.tally(name) for name in "abc"}
    tallies["a"].count(NODE, "m", 1)
    tallies["b"].count("http://second", "m", 2)
    tallies["b"].count("http://second", "m", 3)
    first, second = await look(bench.at, 0), await look(bench.at, 1)
    assert (first.running, first.tokens, first.unplaced) == (("a",), (1,), ("c",))
    assert (second.running, second.tokens, second.unplaced) == (("b",), (5,), ("c",))
    assert (first.url, second.url) == (NODE, "http://second")


async def test_a_run_that_moves_to_another_node_is_told_there_alone(bench):
    add_node(bench, "http://second")
    bench.at.runs.enter("a")
    tally = bench.at.tally("a")
    tally.count(NODE, "m")
    tally.count("http://second", "m")
    assert [(await look(bench.at, number)).running for number in (0, 1)] == [(), ("a",)]


async def test_a_run_that_began_again_is_on_no_node_before_one_answers(bench):
    add_node(bench, "http://second")
    bench.at.runs.enter("a")
    before = bench.at.tally("a")
    before.count(NODE, "m")
    again = bench.at.tally("a")
    assert (await look(bench.at)).unplaced == ("a",)
    assert (before.tokens, again.tokens) == (1, 0)


async def test_tokens_per_second_are_those_of_this_node(bench):
    add_node(bench, "http://second")
    tally = bench.at.tally("a")
    await look(bench.at)
    await look(bench.at, 1)
    tally.count(NODE, "m", 30)
    bench.tick.advance(2.0)
    assert (await look(bench.at)).tokens_per_s == 15.0
    assert (await look(bench.at, 1)).tokens_per_s == 0.0


@pytest.mark.parametrize(("limit", "shares"), [(8, [4, 4]), (9, [5, 4]), (1, [1, 0]), (0, [0, 0])])
async def test_the_nodes_of_a_worker_share_its_slots(bench, limit, shares):
    add_node(bench, "http://second")
    assert bench.at.shares(limit) == shares
    assert bench.at.slots(limit) == limit


async def test_the_slots_of_a_node_that_is_unwell_are_not_given_out_while_another_is_well(bench):
    """Or the runs of both would wait in line at the one that is left."""
    add_node(bench, "http://second")

    async def fail():
        raise NodeUnreachable("It is away.")

    bench.at.nodes[0].client.version = fail
    await look(bench.at, 0)
    await look(bench.at, 1)
    assert bench.at.slots(9) == 4
    bench.at.nodes[1].client.version = fail
    await look(bench.at, 1)
    assert bench.at.slots(9) == 9, "none is well: only a try can tell"


async def test_embeddings_are_told_apart_for_they_take_no_slot(bench):
    for name in "ab":
        bench.at.runs.enter(name)
    bench.at.seats.enter("b")
    snapshot = await look(bench.at)
    assert (snapshot.running, snapshot.embedding, snapshot.busy) == (("a", "b"), ("b",), 1)


async def test_every_node_is_announced_under_a_key_of_its_own_and_one_that_hangs_delays_none(bench, duty):
    add_node(bench, "http://second")
    bench.at.nodes[1].client.version = lambda: asyncio.Event().wait()
    add_node(bench, "http://third")
    task = duty(announce("w@host", bench.at, lambda: 6, lambda _: measured))
    others = [KEY, "gaelp:node:w@host:http://third"]
    await until(lambda: all(bench.broker.sync.exists(key) for key in others))
    assert {json.loads(bench.broker.sync.get(key))["slots"] for key in others} == {2}
    assert not bench.broker.sync.exists("gaelp:node:w@host:http://second")
    await ended(task)
    assert bench.broker.sync.keys("gaelp:node:*") == []


async def test_becoming_unwell_and_well_again_is_logged_once_each(bench, duty, caplog, monkeypatch):
    caplog.set_level("INFO", "gaelp_workers.monitor")
    duty(announce("w@host", bench.at, lambda: 1, lambda _: measured))
    await until(lambda: bench.broker.sync.get(KEY))
    version, polls = bench.at.client.version, []

    async def fail():
        polls.append(1)
        raise NodeUnreachable("It is away.")

    bench.at.client.version = fail
    await until(lambda: len(polls) > 3)
    bench.at.client.version = version
    await until(lambda: "is well again" in caplog.text)
    assert caplog.text.count("It is away.") == caplog.text.count("well again") == 1


async def test_the_announcement_follows_the_node_and_lapses_by_itself(bench, duty):
    slots = [1]
    duty(announce("w@host", bench.at, lambda: slots[0], lambda _: measured))
    text = await until(lambda: bench.broker.sync.get(KEY))
    assert NodeSnapshot.model_validate_json(text).slots == 1
    slots[0] = 0
    await until(lambda: '"slots":0' in bench.broker.sync.get(KEY))
    longest_ms = (monitor.LIVES * bench.at.settings.poll_interval_s + monitor.QUESTION_S) * 1000
    assert 0 < bench.broker.sync.pttl(KEY) <= longest_ms


async def test_the_announcement_is_taken_back_at_the_end(bench, duty):
    task = duty(announce("w@host", bench.at, lambda: 1, lambda _: measured))
    await until(lambda: bench.broker.sync.get(KEY))
    await ended(task)
    assert bench.broker.sync.get(KEY) is None


@pytest.mark.parametrize(
    "duty_of", [lambda at: announce("w@host", at, lambda: 1, lambda _: measured), sweep_cancellations]
)
async def test_a_duty_ends_though_a_command_swallowed_its_cancel(bench, duty, monkeypatch, duty_of):
    """As wait_for inside redis-py does on Python 3.11 when the answer came in the same turn."""
    bench.at.runs.enter("a")
    begun, swallowed = asyncio.Event(), []

    async def command(*_, **__):
        begun.set()
        try:
            await asyncio.sleep(0)
            if not swallowed:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.append(True)
        return [None]

    monkeypatch.setattr(Pipeline, "execute", command)
    monkeypatch.setattr(bench.at.redis, "mget", command)
    task = duty(duty_of(bench.at))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task], timeout=1)
    assert swallowed == [True]
    assert task.done()


async def test_without_redis_it_goes_on_and_announces_again_later(bench, duty, caplog):
    bench.broker.goes_away()
    task = duty(announce("w@host", bench.at, lambda: 1, lambda _: measured))
    await until(lambda: "Redis does not answer" in caplog.text)
    assert not task.done()
    bench.broker.comes_back()
    await until(lambda: bench.broker.sync.get(KEY))


async def test_a_cancel_is_heard(bench, duty):
    run = bench.at.runs.enter("a")
    duty(hear_cancellations(bench.at))
    channel = bench.at.keys.cancellations
    await until(lambda: dict(bench.broker.sync.pubsub_numsub(channel)).get(channel))
    bench.broker.sync.publish(channel, "a")
    await until(lambda: run.reason)
    assert run.reason is Reason.USER


async def test_hearing_survives_a_redis_that_is_away(bench, duty):
    bench.broker.goes_away()
    task = duty(hear_cancellations(bench.at))
    await asyncio.sleep(0.01)
    bench.broker.comes_back()
    channel = bench.at.keys.cancellations
    await until(lambda: dict(bench.broker.sync.pubsub_numsub(channel)).get(channel))
    assert not task.done()


async def test_a_cancel_that_was_not_heard_is_found_by_the_sweep(bench, duty):
    run = bench.at.runs.enter("a")
    bench.broker.goes_away()
    task = duty(sweep_cancellations(bench.at))
    await asyncio.sleep(0.01)
    bench.broker.comes_back()
    request_cancel(bench.broker.sync, bench.at.keys, "a", ttl_s=60.0)
    await until(lambda: run.reason)
    assert not task.done()
