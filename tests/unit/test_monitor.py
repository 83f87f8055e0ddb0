"""The node's snapshot, its announcement, and cancellations heard."""

import asyncio
import os

import pytest

from gaelp_tasks.cancellation import Reason, request_cancel
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import NodeUnreachable
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_workers import monitor
from gaelp_workers.memory import host_memory
from gaelp_workers.monitor import announce, hear_cancellations, sample, sweep_cancellations
from support.fakes import NODE, FakeBroker, Workbench

MEMORY = MemorySnapshot(total_bytes=100, free_bytes=40, source="test")
KEY = "gaelp:node:w@host"


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


async def test_a_snapshot_tells_what_the_node_has_and_runs(bench):
    await bench.at.client.load()
    bench.at.runs.enter("a")
    snapshot = await sample("w@host", bench.at, 3, lambda: MEMORY, 5.0)
    assert snapshot == NodeSnapshot(
        worker="w@host", pid=os.getpid(), url=NODE, healthy=True, version="scripted", models=("scripted",),
        loaded=("scripted",), slots=3, running=("a",), memory=MEMORY, started_at=5.0, seen_at=bench.now(),
    )  # fmt: skip


@pytest.mark.parametrize("question", ["version", "models", "loaded"])
@pytest.mark.parametrize("error", [NodeUnreachable("gone"), TimeoutError()])
async def test_a_node_that_does_not_answer_is_unwell_which_is_no_error(bench, monkeypatch, question, error):
    async def fail():
        raise error

    monkeypatch.setattr(bench.at.client, question, fail)
    assert not (await sample("w", bench.at, 1, lambda: MEMORY, 0.0)).healthy


async def test_a_node_that_hangs_is_unwell(bench, monkeypatch):
    monkeypatch.setattr(monitor, "QUESTION_S", 0.01)
    monkeypatch.setattr(bench.at.client, "loaded", lambda: asyncio.Event().wait())
    assert not (await sample("w", bench.at, 1, lambda: MEMORY, 0.0)).healthy


async def test_the_announcement_follows_the_node_and_lapses_by_itself(bench, duty):
    slots = [1]
    duty(announce("w@host", bench.at, lambda: slots[0], lambda: MEMORY))
    text = await until(lambda: bench.broker.sync.get(KEY))
    assert NodeSnapshot.model_validate_json(text).slots == 1
    slots[0] = 0
    await until(lambda: '"slots":0' in bench.broker.sync.get(KEY))
    longest_ms = (monitor.LIVES * bench.at.settings.poll_interval_s + monitor.QUESTION_S) * 1000
    assert 0 < bench.broker.sync.pttl(KEY) <= longest_ms


async def test_the_announcement_is_taken_back_at_the_end(bench, duty):
    task = duty(announce("w@host", bench.at, lambda: 1, lambda: MEMORY))
    await until(lambda: bench.broker.sync.get(KEY))
    await ended(task)
    assert bench.broker.sync.get(KEY) is None


@pytest.mark.parametrize(
    "duty_of", [lambda at: announce("w@host", at, lambda: 1, lambda: MEMORY), sweep_cancellations]
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

    monkeypatch.setattr(bench.at.redis, "set", command)
    monkeypatch.setattr(bench.at.redis, "mget", command)
    task = duty(duty_of(bench.at))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task], timeout=1)
    assert swallowed == [True]
    assert task.done()


async def test_without_redis_it_goes_on_and_announces_again_later(bench, duty, caplog):
    bench.broker.goes_away()
    task = duty(announce("w@host", bench.at, lambda: 1, lambda: MEMORY))
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


def test_the_hosts_memory_is_measured():
    memory = host_memory()
    assert 0 < memory.free_bytes <= memory.total_bytes
    assert memory.source == "host"
