"""A conductor over a real SQLite and a Redis of this test: whatever dies when, each line ends once."""

from random import Random

import pytest

from gaelp_tasks.models.batch import BatchState, Counts
from gaelp_tasks.models.batch_work import TakenOver
from gaelp_tasks.tasks.conducting import Paces, Pause
from support.conducting import BEGIN, WINDOW, Killed, Mortal, Node, numbers, scenes


@pytest.fixture
async def scene(tmp_path):
    async with scenes(tmp_path) as make:
        yield make


async def test_every_line_runs_once_few_at_a_time_and_redis_forgets_them(scene):
    at = await scene(50)
    assert await at.run() is None
    told = await at.told()
    assert (told.state, told.counts) == (BatchState.COMPLETED, Counts(total=50, done=50))
    assert await at.ids() == numbers(1, 50)
    assert set(at.node.ran.values()) == {1}
    assert at.node.most_out <= WINDOW
    left = [record for record in at.node.records.values() if record["result"]]
    assert left == []


async def test_redis_forgets_lines_while_the_batch_goes_on(scene):
    at = await scene(200)
    at.paces = Paces(clears=1.0)
    most = 0

    def look():
        nonlocal most
        most = max(most, len(at.node.records))

    at.on_sleep = look
    await at.run()
    assert most < 100


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_dies_when_each_line_ends_once_in_order(scene, seed):
    rng = Random(seed)
    at = await scene(25, node=Node(rng))
    at.per_sleep, at.paces = rng.choice([1, 3]), Paces(clears=0.1)
    died = 0
    for _ in range(400):
        mortal = {"batches": Mortal(at.batches, rng, 0.03), "lines": Mortal(at.node, rng, 0.03)}
        try:
            assert await at.run(**mortal, died=bool(died)) is None
            break
        except Killed:
            died += 1
            at.node.work(rng.randrange(3))
        except TakenOver:  # it was over, and died behind that
            break
    told = await at.told()
    assert (told.state, told.counts.done) == (BatchState.COMPLETED, 25)
    assert await at.ids() == numbers(1, 25)
    assert await at.ids(errors=True) == []
    at.node.work(1000)  # what is left in the queue
    assert set(at.node.ran.values()) == {1}, "no model was called twice for a line that was told"
    assert died, "else this seed shows nothing"


async def test_a_line_that_was_told_before_its_conductor_died_is_not_published_again(scene):
    at = await scene(4)
    conductor = at.conductor()

    async def dies(seconds):
        at.node.work(2)
        raise Killed

    conductor._sleep = dies
    with pytest.raises(Killed):
        await conductor.run(ticket=0, died=False)
    before = len(at.node.queue)
    assert before == 2
    at.per_sleep = 0
    again = at.conductor(leave=lambda: Pause(0.0, "enough"))
    await again.run(ticket=0, died=True)
    assert len(at.node.queue) == before + 2, "the two that are open"


async def test_who_leaves_in_order_leaves_nothing_to_be_published_again(scene):
    at = await scene(8)
    at.per_sleep = 0
    assert await at.run(leave=lambda: Pause(2.0, "others wait")) == Pause(2.0, "others wait")
    assert len(at.node.queue) == WINDOW
    at.per_sleep = 2
    assert await at.run() is None
    assert set(at.node.claims.values()) <= {1}
    assert (await at.told()).counts.done == 8


async def test_a_conductor_that_was_followed_writes_nothing_more(scene):
    at = await scene(8)
    old = at.conductor()

    async def followed(seconds):
        await at.batches.take_over(at.batch.id, "new", ticket=0, now=BEGIN, died=False)
        at.node.work(9)
        at.at += 5

    old._sleep = followed
    with pytest.raises(TakenOver):
        await old.run(ticket=0, died=False)
    assert (await at.told()).counts.done == 0


async def test_a_redis_that_is_away_is_waited_for(scene):
    at = await scene(20)
    outage = iter([False, True, True, True, False, True, False])

    def turn():
        at.node.away = next(outage, False)

    at.on_sleep = turn
    await at.run()
    assert (await at.told()).counts.done == 20
    assert set(at.node.ran.values()) == {1}


async def test_a_redis_that_has_started_anew_gets_again_what_it_may_have_lost(scene):
    at = await scene(8)
    looks = 0

    def lose():
        nonlocal looks
        looks += 1
        if looks == 3:  # its last second is gone, a run that nobody will ever tell of
            at.node.queue.clear()
            at.node.life = "second"

    at.per_sleep, at.on_sleep = 1, lose
    await at.run()
    assert (await at.told()).counts.done == 8


async def test_what_was_purged_from_the_queue_is_published_again_in_time(scene):
    at = await scene(6)
    at.paces = Paces(lost=30.0)
    at.per_sleep, purged = 0, []

    def purge():
        if not purged and at.node.queue:
            purged.extend(at.node.queue)
            at.node.queue.clear()
            at.per_sleep = 1

    at.on_sleep = purge
    await at.run()
    assert len(purged) == WINDOW
    assert (await at.told()).counts.done == 6
    assert 30 <= at.at < 60
    assert set(at.node.ran.values()) == {1}


async def test_it_makes_way_for_what_must_run_alone(scene):
    at = await scene(8)
    at.node.suspects = 1
    pause = await at.run()
    assert pause.after_s > 0
    assert "nothing else" in pause.why
    at.node.suspects = 0
    assert await at.run() is None


async def test_who_takes_over_looks_at_what_has_changed_and_not_at_all_that_ran_before(scene):
    """One line takes for ever; before, everything behind it was looked at in every turn."""
    at = await scene(200)
    at.paces = Paces(clears=0.2)
    walked, queue = [], at.node.work
    published = at.batches.published

    def all_but_the_first(count=1):
        first = [one for one in at.node.queue[:1] if not at.node.ran]
        queue(count)
        if first:  # it is out, and is not told
            held.extend(first)
            at.node.records.pop(first[0])

    async def counted(*args, **how):
        async for some in published(*args, **how):
            walked.append(len(some))
            yield some

    held = []
    at.node.work, at.batches.published = all_but_the_first, counted
    for turn in range(1, 5):
        before = (await at.told()).counts.done
        until = iter(range(20))
        await at.run(leave=lambda until=until: None if next(until, None) is not None else Pause(0.0, "turn"))
        assert (await at.told()).counts.done > before, turn
    assert (await at.told()).counts.done > 100
    assert sum(walked) < 100
    at.node.records[held[0]] = {"status": "SUCCESS", "result": {"text": "", "stop_reason": "stop"}}
    assert await at.run() is None
    assert await at.ids() == numbers(1, 200)
    assert set(at.node.ran.values()) == {1}
