"""A batch with windows: published inside them only, and left alone until the next one opens."""

from datetime import timedelta

import pytest

from gaelp_tasks.models.batch import BatchState, Counts
from gaelp_tasks.models.schedule import Hours
from support.conducting import BEGIN, WINDOW, Killed, numbers, scenes

MIDNIGHT = Hours.parse(["00:00-00:01"])
MORNING = Hours.parse(["06:00-07:00"])
DAY_S, HOUR_S = 86_400.0, 3600.0


@pytest.fixture
async def scene(tmp_path):
    async with scenes(tmp_path) as make:
        yield make


def at_clock(seconds):
    return BEGIN + timedelta(seconds=seconds)


async def test_before_its_window_nothing_is_published_and_somebody_comes_as_it_opens(scene):
    at = await scene(10, hours=MORNING)
    pause = await at.run()
    assert (pause.after_s, pause.until) == (6 * HOUR_S, at_clock(6 * HOUR_S))
    told = await at.told()
    assert (told.state, told.waits_until) == (BatchState.IN_PROGRESS, at_clock(6 * HOUR_S))
    assert at.node.claims == {}
    held = await at.batches.take_over(at.batch.id, "x", ticket=0, now=BEGIN, died=False)
    assert (held.in_order, held.reach.published_to) == (True, 0)
    at.at = 6 * HOUR_S
    assert await at.run() is None
    told = await at.told()
    assert (told.state, told.counts, told.waits_until) == (BatchState.COMPLETED, Counts(10, 10), None)


async def test_what_is_out_when_its_window_closes_goes_on_and_the_rest_waits_for_the_next(scene):
    at = await scene(40, hours=MIDNIGHT)
    at.per_sleep = 1

    def turn():
        at.at += 5
        at.per_sleep = 0 if 60 < at.at < 120 else 1  # those that are out take their time

    at.on_sleep = turn
    pause = await at.run()
    assert pause.until == at_clock(DAY_S)
    done = (await at.told()).counts.done
    assert 60 / 5.1 <= done <= 60 / 5 + WINDOW, "one in five seconds of a minute, and those that were out"
    assert at.node.queue == []
    assert [record for record in at.node.records.values() if record["result"]] == [], "Redis forgot them"
    at.at, at.per_sleep, at.on_sleep = DAY_S, 5, lambda: None
    assert await at.run() is None
    assert await at.ids() == numbers(1, 40)
    assert set(at.node.ran.values()) == {1}
    assert max(at.node.claims.values(), default=0) <= 1, "it was left in order"


async def test_what_a_dead_conductor_had_out_is_published_again_in_the_next_window_only(scene):
    at = await scene(10, hours=MIDNIGHT)
    conductor = at.conductor()

    async def dies(seconds):
        raise Killed

    conductor._sleep = dies
    with pytest.raises(Killed):
        await conductor.run(ticket=0, died=False)
    assert len(at.node.queue) == WINDOW
    at.node.queue.clear()  # with the Redis of that node
    at.at = HOUR_S
    assert (await at.run(died=True)).until == at_clock(DAY_S)
    assert (at.node.queue, dict(at.node.ran)) == ([], {})
    at.at = DAY_S
    assert await at.run() is None
    assert await at.ids() == numbers(1, 10)


async def test_a_batch_expires_while_it_waits_for_its_window(scene):
    at = await scene(10, hours=MORNING, within_s=2 * HOUR_S)
    assert (await at.run()).until == at_clock(2 * HOUR_S)
    at.at = 2 * HOUR_S
    assert await at.run() is None
    told = await at.told()
    assert (told.state, told.counts) == (BatchState.EXPIRED, Counts(10, expired=10))


async def test_a_batch_that_is_cancelled_while_it_waits_is_ended_by_the_next_call(scene):
    at = await scene(10, hours=MORNING)
    await at.run()
    await at.batches.move(at.batch.id, BatchState.CANCELLING, now=BEGIN)
    assert await at.run() is None
    assert (await at.told()).state is BatchState.CANCELLED


class CancelledThen:
    """Batches of which one is cancelled just after it was noted that so many lines have ended."""

    def __init__(self, batches, done):
        self._inner, self._done = batches, done

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def progress(self, batch_id, *given, **named):
        noted = await self._inner.progress(batch_id, *given, **named)
        if noted.counts.done == self._done and noted.state is BatchState.IN_PROGRESS:
            await self._inner.move(batch_id, BatchState.CANCELLING, now=BEGIN)
        return noted


async def test_a_cancel_in_the_moment_in_which_the_window_closes_is_not_left_lying(scene):
    at = await scene(10, hours=MIDNIGHT)
    at.paces = at.paces._replace(clears=0.0)
    at.per_sleep = WINDOW

    def close():
        at.at = max(at.at, 60.0)

    at.on_sleep = close
    assert await at.run(batches=CancelledThen(at.batches, WINDOW)) is None
    told = await at.told()
    assert (told.state, told.counts) == (BatchState.CANCELLED, Counts(10, WINDOW, cancelled=6))


async def test_a_batch_whose_last_line_ends_behind_its_window_is_completed_at_once(scene):
    at = await scene(WINDOW, hours=MIDNIGHT)

    def close():
        at.at += 60

    at.on_sleep = close
    assert await at.run() is None
    assert (await at.told()).state is BatchState.COMPLETED
