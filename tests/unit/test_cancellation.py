"""Stopping a run: by reason, from anywhere, and nothing else torn apart."""

import asyncio

import pytest

from gaelp_tasks.cancellation import (
    Cancellation,
    Cancelled,
    Reason,
    Runs,
    listen,
    request_cancel,
    sweep,
)
from gaelp_tasks.keys import Keys
from support.eventually import eventually
from support.fakes import FakeBroker

KEYS = Keys("ns:")


@pytest.fixture
async def button():
    return Cancellation(asyncio.get_running_loop())


@pytest.fixture
async def runs():
    return Runs(asyncio.get_running_loop())


@pytest.fixture
async def broker():
    """A fake Redis with one asynchronous client."""
    fake = FakeBroker()
    fake.redis = fake.client()
    yield fake
    await fake.redis.aclose()


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("reason", Reason)
async def test_a_stop_ends_the_wait_and_comes_out_with_its_reason(button, reason):
    waiting, torn = asyncio.Event(), []

    async def run():
        async with button:
            waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                torn.append("here")
                raise

    task = asyncio.create_task(run())
    await waiting.wait()
    await asyncio.to_thread(button.stop, reason)
    with pytest.raises(Cancelled) as caught:
        await task
    assert caught.value.reason is reason
    assert str(caught.value) == f"stopped: {reason}"
    assert torn == ["here"]
    assert not task.cancelled()
    assert task.cancelling() == 0


async def test_the_first_reason_counts(button):
    button.stop(Reason.DEADLINE)
    button.stop(Reason.USER)
    await settled()
    assert button.reason is Reason.DEADLINE
    with pytest.raises(Cancelled) as caught:
        async with button:
            pytest.fail("it must not begin")
    assert caught.value.reason is Reason.DEADLINE


async def test_a_second_stop_does_not_tear_apart_what_the_first_is_cleaning_up(button):
    cleaned = []

    async def run():
        async with button:
            try:
                await asyncio.Event().wait()
            finally:
                button.stop(Reason.SHUTDOWN)
                await settled()
                cleaned.append("all of it")

    task = asyncio.create_task(run())
    await settled()
    button.stop(Reason.USER)
    with pytest.raises(Cancelled) as caught:
        await task
    assert caught.value.reason is Reason.USER
    assert cleaned == ["all of it"]


async def test_a_stop_after_leaving_is_only_remembered(button):
    async with button:
        pass
    button.stop(Reason.USER)
    await settled()  # would be cancelled here
    assert button.reason is Reason.USER


async def test_after_a_stop_the_task_can_go_on_to_settle(button):
    async def run():
        try:
            async with button:
                await asyncio.Event().wait()
        except Cancelled:
            await settled()
            async with asyncio.timeout(5):
                await settled()
            return "settled"

    task = asyncio.create_task(run())
    await settled()
    button.stop(Reason.USER)
    assert await task == "settled"


async def test_a_stop_that_meets_a_task_already_on_its_way_leaves_nothing_behind(button):
    gate = asyncio.get_running_loop().create_future()

    async def run():
        try:
            async with button:
                await gate
        except Cancelled:
            await settled()
            return "settled"
        return "unnoticed"

    task = asyncio.create_task(run())
    await settled()
    gate.set_result(None)
    button._stop(Reason.USER)  # in the same turn of the loop
    assert await task == "settled"


async def test_a_cancellation_from_outside_is_not_taken_for_ours(button):
    async def run():
        async with button:
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert button.reason is None


async def test_a_cancellation_from_outside_is_not_swallowed_by_ours(button):
    async def run():
        async with button:
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await settled()
    button._stop(Reason.USER)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_body_that_swallows_the_cancel_still_ends_as_cancelled(button):
    async def run():
        async with button:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "I go on"

    task = asyncio.create_task(run())
    await settled()
    button.stop(Reason.EVICTION)
    with pytest.raises(Cancelled) as caught:
        await task
    assert caught.value.reason is Reason.EVICTION


async def test_an_error_while_being_stopped_is_kept_as_the_cause(button):
    async def run():
        async with button:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise OSError("closing failed") from None

    task = asyncio.create_task(run())
    await settled()
    button.stop(Reason.USER)
    with pytest.raises(Cancelled) as caught:
        await task
    assert isinstance(caught.value.__cause__, OSError)


async def test_an_error_without_a_stop_comes_out_as_it_is(button):
    with pytest.raises(KeyError):
        async with button:
            raise KeyError("x")


# -- the runs of a process


async def test_an_id_has_one_button_until_it_leaves(runs):
    first = runs.enter("a")
    assert runs.enter("a") is first
    assert runs.ids() == ("a",)
    runs.leave("a")
    runs.leave("a")
    assert runs.ids() == ()
    assert runs.enter("a") is not first


async def test_only_what_runs_here_can_be_stopped(runs):
    mine, other = runs.enter("a"), runs.enter("b")
    assert runs.stop("a", Reason.USER)
    assert not runs.stop("c", Reason.USER)
    await settled()
    assert (mine.reason, other.reason) == (Reason.USER, None)


# -- requests through Redis


async def test_a_request_is_left_standing_with_a_time_to_live(broker):
    request_cancel(broker.sync, KEYS, "a", ttl_s=60.0)
    assert broker.sync.get("ns:gaelp:cancel:a") == "user"
    assert 0 < broker.sync.pttl("ns:gaelp:cancel:a") <= 60_000
    assert broker.sync.keys("*") == ["ns:gaelp:cancel:a"]


async def test_several_can_be_asked_for_at_once(broker):
    request_cancel(broker.sync, KEYS, "a", "b", ttl_s=60.0)
    request_cancel(broker.sync, KEYS, ttl_s=60.0)
    assert sorted(broker.sync.keys("*")) == ["ns:gaelp:cancel:a", "ns:gaelp:cancel:b"]


async def test_a_sweep_stops_those_with_a_request_and_nobody_else(broker, runs):
    wanted, other = runs.enter("a"), runs.enter("b")
    request_cancel(broker.sync, KEYS, "a", ttl_s=60.0)
    request_cancel(broker.sync, KEYS, "elsewhere", ttl_s=60.0)
    await sweep(broker.redis, KEYS, runs)
    await settled()
    assert (wanted.reason, other.reason) == (Reason.USER, None)


async def test_a_sweep_with_nothing_running_asks_nothing(broker, runs):
    broker.goes_away()
    await sweep(broker.redis, KEYS, runs)


async def test_a_call_is_heard_at_once(broker, runs):
    wanted, other = runs.enter("a"), runs.enter("b")
    listening = asyncio.create_task(listen(broker.redis, KEYS, runs))
    await asyncio.to_thread(
        eventually, lambda: dict(broker.sync.pubsub_numsub(KEYS.cancellations)).get(KEYS.cancellations)
    )
    request_cancel(broker.sync, KEYS, "elsewhere", ttl_s=60.0)
    request_cancel(broker.sync, KEYS, "a", ttl_s=60.0)
    async with asyncio.timeout(10):
        while wanted.reason is None:
            await asyncio.sleep(0.001)
    assert other.reason is None
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening


async def test_the_end_of_a_run_leaves_the_button_of_a_later_run_of_its_id():
    """It was given back and taken again here before its thread had quite ended."""
    runs = Runs(asyncio.get_running_loop())
    first = runs.enter("x")
    runs.leave("x", first)
    second = runs.enter("x")
    runs.leave("x", first)
    assert second is not first
    assert runs.stop("x", Reason.PREEMPTION)
    runs.leave("x", second)
    assert not runs.stop("x", Reason.USER)


async def test_what_makes_way_is_not_counted_beside_the_one_that_took_its_slot():
    runs = Runs(asyncio.get_running_loop())
    for name in ("goes", "stays"):
        runs.enter(name)
    runs.stop("goes", Reason.PREEMPTION)
    runs.stop("stays", Reason.USER)
    await asyncio.sleep(0)
    assert runs.ids() == ("stays",), "a cancelled one has its slot until it has ended"
