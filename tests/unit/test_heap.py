"""What a worker has freed goes back to its node."""

import asyncio
import weakref

import psutil
import pytest

from gaelp_workers import heap

MIB = 1024**2


def held_bytes():
    return psutil.Process().memory_full_info().uss


def test_what_lies_free_between_what_lives_is_given_back():
    if heap._trim() is None:
        pytest.skip("this C library has no malloc_trim")
    pieces = [bytes(3_000) for _ in range(20_000)]  # above what Python keeps in arenas of its own
    living = pieces[::50]
    pieces.clear()
    full = held_bytes()
    assert heap.give_back()
    assert full - held_bytes() > 20 * MIB
    assert len(living) == 400


def test_cycles_that_nobody_holds_are_freed():
    class Cycle:
        def __init__(self):
            self.itself = self

    gone = weakref.ref(Cycle())
    heap.give_back()
    assert gone() is None


def test_where_the_c_library_cannot_do_it_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    assert not heap.give_back()


async def test_a_worker_gives_back_now_and_then(monkeypatch):
    given = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(heap, "EVERY_S", 0.0)
    monkeypatch.setattr(heap, "give_back", lambda: loop.call_soon_threadsafe(given.set))
    duty = asyncio.create_task(heap.keep_lean())
    await asyncio.wait_for(given.wait(), 10)
    duty.cancel()
