"""Who gets a place of a worker for training jobs, and who makes way."""

import asyncio
import threading
from time import monotonic

import pytest

from gaelp_tasks.models.resources import Resources
from gaelp_tasks.training import places as module
from gaelp_tasks.training.places import NeverFits, NoRoom, Places, left

CPU = Resources(cpu_milli=1000)
BIG = Resources(cpu_milli=3000)
TOTAL = Resources(cpu_milli=4000, memory_bytes=100)


def never():
    return asyncio.get_running_loop().create_future()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_what_is_left_is_bounded_by_what_jobs_take_and_by_what_is_seen():
    assert left(TOTAL, [CPU, CPU]) == Resources(cpu_milli=2000, memory_bytes=100)
    assert left(TOTAL, [BIG, BIG]).cpu_milli == 0
    seen = Resources(cpu_milli=2**40, memory_bytes=7)
    assert left(TOTAL, [], seen) == Resources(cpu_milli=4000, memory_bytes=7)


async def test_what_is_more_than_the_worker_has_is_refused_at_once():
    with pytest.raises(NeverFits, match="more cpu, gpu than"):
        async with Places(2, TOTAL).taken("a", Resources(cpu_milli=5000, gpus=1), 5, never()):
            pass


async def test_a_job_that_does_not_fit_now_waits_and_nothing_less_urgent_passes_it():
    places, order = Places(4, TOTAL), []
    over = {name: asyncio.Event() for name in "abc"}

    async def run(name, needs, priority):
        async with places.taken(name, needs, priority, never()):
            order.append(name)
            await over[name].wait()

    first = asyncio.create_task(run("a", BIG, 5))
    await until(lambda: order == ["a"])
    assert places.open == 4
    second = asyncio.create_task(run("b", BIG, 5))
    await until(lambda: places.open == 0)
    third = asyncio.create_task(run("c", CPU, 1))
    await asyncio.sleep(0.3)
    assert order == ["a"], "c would fit, and b comes before it"
    over["a"].set()
    await until(lambda: order == ["a", "b", "c"])
    for event in over.values():
        event.set()
    await asyncio.gather(first, second, third)
    assert places.end() == ()


async def test_who_comes_once_the_worker_stops_is_let_in_no_more_and_who_is_here_is_told():
    places, stopper = Places(1, TOTAL), never()

    async def waits():
        with pytest.raises(NoRoom, match="stopped"):
            async with places.taken("b", CPU, 5, stopper):
                pass

    async with places.taken("a", CPU, 5, never()):
        waiting = asyncio.create_task(waits())
        await until(lambda: places.open == 0)
        assert places.end() == ("a", "b")
        with pytest.raises(NoRoom, match="its worker stops"):
            async with places.taken("c", CPU, 9, never()):
                pass
        stopper.set_result(None)
        await waiting


async def test_waiting_ends_when_it_is_stopped():
    places = Places(1, TOTAL)
    async with places.taken("a", CPU, 5, never()):
        stopper = never()
        asyncio.get_running_loop().call_later(0.05, stopper.set_result, None)
        with pytest.raises(NoRoom, match="stopped"):
            async with places.taken("b", CPU, 9, stopper):
                pass
        assert places.open == 1


async def test_what_others_have_taken_is_told_from_what_jobs_here_will_give_back(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    seen = [Resources(cpu_milli=2**40, memory_bytes=50)]
    places = Places(4, TOTAL, lambda: seen[0])
    some, more = Resources(memory_bytes=40), Resources(memory_bytes=80)
    async with places.taken("a", some, 5, never()):
        seen[0] = Resources(cpu_milli=2**40, memory_bytes=10)
        await asyncio.sleep(2 * module.LOOK_S)  # what was seen before is over
        with pytest.raises(NoRoom, match="enough memory free") as caught:
            async with places.taken("b", some, 5, never()):
                pass
        assert not caught.value.taken_by_others, "once a has ended there is room"
        with pytest.raises(NoRoom) as caught:
            async with places.taken("c", more, 5, never()):
                pass
        assert caught.value.taken_by_others


async def test_many_that_wait_look_at_the_machine_once_together_and_beside_the_loop(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.5)
    looks = []

    def seen():
        looks.append(threading.current_thread())
        return Resources(cpu_milli=2**40, memory_bytes=10)

    places = Places(40, TOTAL, seen)

    async def wait(name):
        with pytest.raises(NoRoom):
            async with places.taken(str(name), Resources(memory_bytes=40), 5, never()):
                pass

    began = monotonic()
    await asyncio.gather(*(wait(name) for name in range(30)))
    assert 1 < len(looks) <= (monotonic() - began) / module.LOOK_S + 1
    assert threading.current_thread() not in looks


async def test_a_machine_that_tells_nothing_keeps_nobody_from_stopping():
    told = threading.Event()
    places = Places(1, TOTAL, lambda: told.wait(20) and None)
    stopper = never()
    asyncio.get_running_loop().call_later(0.05, stopper.set_result, None)
    try:
        async with asyncio.timeout(5):
            with pytest.raises(NoRoom, match="stopped"):
                async with places.taken("a", CPU, 5, stopper):
                    pass
    finally:
        told.set()


async def test_the_least_urgent_and_then_the_newest_preemptible_job_makes_way():
    places = Places(3, TOTAL)
    async with (
        places.taken("a", CPU, 3, never()) as a,
        places.taken("b", CPU, 2, never()) as b,
        places.taken("c", CPU, 3, never()) as c,
    ):
        assert places.first_to_yield() is None
        a.preemptible = c.preemptible = True
        assert places.first_to_yield() is c, "newer than a, and b must not"
        b.preemptible = True
        assert places.first_to_yield() is b
        assert not places.waits_above(2)
    assert places.first_to_yield() is None


async def test_nobody_makes_way_while_a_place_is_free():
    places = Places(2, TOTAL)
    async with places.taken("a", CPU, 3, never()) as one:
        one.preemptible = True
        assert places.first_to_yield() is None


async def test_a_worker_without_what_jobs_need_claims_none_for_a_while():
    places = Places(2, TOTAL)
    places.close_for(60)
    assert places.open == 0
    assert Places().open == 0
