"""How a batch ends: completed, cancelled, expired or failed; each line is told, and Redis forgets them."""

import asyncio

import pytest

from gaelp_tasks.models.batch import BatchState, Counts
from gaelp_tasks.tasks.conducting import Paces, Pause
from support.conducting import BEGIN, WINDOW, Killed, numbers, scenes


@pytest.fixture
async def scene(tmp_path):
    async with scenes(tmp_path) as make:
        yield make


async def test_what_is_refused_or_fails_is_an_error_line(scene):
    at = await scene(5, prompt="REFUSE")
    await at.run()
    told = await at.told()
    assert (told.state, told.counts) == (BatchState.COMPLETED, Counts(total=5, failed=5))
    assert await at.ids(errors=True) == numbers(1, 5)
    at = await scene(3)
    at.node.fails = {line.task_id for line in await at.batches.next_lines(at.batch.id, after=0, most=9)}
    await at.run()
    assert (await at.told()).counts == Counts(total=3, failed=3)


async def test_a_cancel_keeps_what_is_done_and_stops_the_rest(scene):
    at = await scene(40)
    cancelling = False

    async def cancel():
        await at.batches.move(at.batch.id, BatchState.CANCELLING, now=BEGIN)

    tasks = []

    def turn():
        nonlocal cancelling
        if at.node.ran.total() >= 6 and not cancelling:
            cancelling = True
            tasks.append(asyncio.ensure_future(cancel()))

    at.on_sleep = turn
    await at.run()
    await asyncio.gather(*tasks)
    told = await at.told()
    assert told.state is BatchState.CANCELLED
    assert told.counts.done >= 6
    assert told.counts.cancelled >= 1
    assert told.counts.open == 0
    assert sorted([*await at.ids(), *await at.ids(errors=True)], key=int) == numbers(1, 40)
    before = at.node.ran.total()
    assert before < 40


async def test_a_window_that_closes_keeps_what_is_done_and_expires_the_rest(scene):
    at = await scene(60, within_s=1.0)
    await at.run()
    told = await at.told()
    assert told.state is BatchState.EXPIRED
    assert 0 < told.counts.done < 60
    assert told.counts.done + told.counts.expired == 60
    assert sorted([*await at.ids(), *await at.ids(errors=True)], key=int) == numbers(1, 60)


async def test_a_batch_whose_last_line_ends_as_the_window_closes_is_completed(scene):
    at = await scene(2, within_s=3.0)

    def turn():
        at.at += 5

    at.on_sleep = turn
    await at.run()
    told = await at.told()
    assert (told.state, told.counts) == (BatchState.COMPLETED, Counts(total=2, done=2))


async def test_a_batch_that_kills_every_worker_fails_at_last(scene):
    at = await scene(6)
    for _ in range(3):
        await at.batches.take_over(at.batch.id, "x", ticket=0, now=BEGIN, died=True)
    assert await at.run(died=True, most_deaths=4) is None
    told = await at.told()
    assert (told.state, told.counts) == (BatchState.FAILED, Counts(total=6, failed=6))
    assert told.trouble.startswith("4 tries")


async def test_a_batch_that_fails_does_so_although_a_line_ends_and_its_conductor_dies_meanwhile(scene):
    at = await scene(6)
    at.per_sleep = 0
    await at.run(leave=lambda: Pause(0.0, "with lines out"))
    for _ in range(3):
        await at.batches.take_over(at.batch.id, "x", ticket=0, now=BEGIN, died=True)
    last = at.conductor(most_deaths=4)
    sleeps = 0

    async def dies(seconds):
        nonlocal sleeps
        sleeps += 1
        at.node.work(9)
        if sleeps == 2:  # behind the note of what has ended
            raise Killed

    last._sleep = dies
    with pytest.raises(Killed):
        await last.run(ticket=0, died=True)
    assert (await at.told()).counts.failed == WINDOW
    assert await at.run(died=True, most_deaths=4) is None
    told = await at.told()
    assert (told.state, told.counts) == (BatchState.FAILED, Counts(total=6, failed=6))


async def test_turns_leave_nothing_in_redis_and_an_end_leaves_it_for_an_hour(scene):
    at = await scene(40)
    at.paces = Paces(clears=0.2)
    while (await at.told()).state is not BatchState.COMPLETED:
        until = iter(range(5))
        await at.run(leave=lambda until=until: None if next(until, None) is not None else Pause(0.0, "turn"))
    assert set(at.node.marks.values()) <= {3600}
    assert len(at.node.marks) < 20
    assert at.node.records.keys() == at.node.marks.keys()
