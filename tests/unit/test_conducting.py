"""A conductor over a real SQLite and a Redis of this test: whatever dies when, each line ends once."""

import asyncio
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from gaelp_tasks.connections import Trouble
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch import BatchState, Counts, LineOutcome
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Ended, TakenOver
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import take_in, write_out
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.batch_lines import Redis, verdict
from gaelp_tasks.tasks.conducting import Conductor, Paces, Pause

BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
WINDOW = 4


class Killed(BaseException):
    """The process is gone in this very moment."""


class Node:
    """The lines' invocations: who is published runs later; `records` is what is known of each id."""

    def __init__(self, rng=None):
        self.rng = rng or Random(0)
        self.queue = []
        self.claims = Counter()
        self.ran = Counter()
        self.records = {}
        self.stopped = set()
        self.most_out = 0
        self.life, self.suspects = "first", 0
        self.away = False
        self.fails = set()  # ids whose runs fail

    def work(self, count=1):
        """Take so many messages, as workers do: what was told before is dropped."""
        for _ in range(min(count, len(self.queue))):
            task_id = self.queue.pop(0)
            self.claims[task_id] += 1
            if self.claims[task_id] > 1 and self.records.get(task_id, {}).get("status") == "SUCCESS":
                continue
            self.ran[task_id] += 1
            if task_id in self.fails:
                told = {"exc_type": "NodeFailed", "exc_message": ["It broke."]}
                self.records[task_id] = {"status": "FAILURE", "result": told}
            else:
                reason = "cancelled" if task_id in self.stopped else "stop"
                self.records[task_id] = {"status": "SUCCESS", "result": _result(task_id, reason)}

    def _there(self):
        if self.away:
            raise Trouble("away")

    # --- what a conductor asks ---

    def publish(self, lines):
        self._there()
        for line in lines:
            self.queue.append(line.task_id)
        self.most_out = max(self.most_out, len(set(self.queue)))
        refused = [line for line in lines if "REFUSE" in line.arguments]
        self.queue = [task_id for task_id in self.queue if task_id not in {line.task_id for line in refused}]
        return [Ended(line.number, LineOutcome.FAILED, "InvalidInvocation", "No.") for line in refused]

    def ended(self, ids):
        self._there()
        return {one: self.records[one] for one in ids if self.records.get(one, {}).get("result")}

    def clear(self, ids):
        self._there()
        for one in ids:
            self.records.pop(one, None)
            self.claims.pop(one, None)

    def void(self, ids, *, all_of_them):
        self._there()
        for one in ids:
            if all_of_them or one in self.records:
                self.records[one] = {"status": "SUCCESS", "result": None}

    def stop(self, ids):
        self._there()
        self.stopped.update(ids)

    def redis(self):
        self._there()
        return Redis(self.life, self.suspects)


def _result(task_id, reason):
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return {"id": task_id, "text": task_id, "model": "m", "stop_reason": reason, "usage": usage}


class Mortal:
    """Something of which each call may be the last thing that its caller did."""

    def __init__(self, inner, rng, odds):
        self._inner, self._rng, self._odds = inner, rng, odds

    def __getattr__(self, name):
        call = getattr(self._inner, name)
        if name in {"published", "asked"} or not callable(call):
            return call

        def die():
            if self._rng.random() < self._odds:
                raise Killed

        if asyncio.iscoroutinefunction(call):

            async def then(*args, **kwargs):
                die()
                told = await call(*args, **kwargs)
                die()
                return told

            return then

        def blocking(*args, **kwargs):
            die()
            if name == "publish" and self._rng.random() < self._odds:  # half-way
                call(args[0][: len(args[0]) // 2])
                raise Killed
            told = call(*args, **kwargs)
            die()
            return told

        return blocking


class Scene:
    """One batch, a node, and a clock that goes on when somebody sleeps."""

    def __init__(self, batches, batch, node):
        self.batches, self.batch, self.node = batches, batch, node
        self.at = 0.0
        self.per_sleep = 2  # messages that are worked off meanwhile
        self.on_sleep = lambda: None
        self.paces = Paces()
        self.lives = 0

    async def sleep(self, seconds):
        self.at += max(seconds, 0.001)
        self.node.work(self.per_sleep)
        self.on_sleep()
        await asyncio.sleep(0)

    def conductor(self, *, batches=None, lines=None, leave=lambda: None, most_deaths=100):
        self.lives += 1
        return Conductor(
            self.batch.id,
            name=f"life {self.lives}",
            batches=batches or self.batches,
            lines=lines or self.node,
            verdict=verdict,
            window=WINDOW,
            most_deaths=most_deaths,
            leave=leave,
            paces=self.paces,
            tick=lambda: self.at,
            now=lambda: BEGIN + timedelta(seconds=self.at),
            sleep=self.sleep,
        )

    async def run(self, *, died=False, **how):
        return await self.conductor(**how).run(ticket=0, died=died)

    async def told(self):
        return (await self.batches.find(self.batch.id))[0]

    async def ids(self, *, errors=False):
        out = io.StringIO()
        await write_out(self.batches, self.batch, out, errors=errors)
        return [json.loads(line)["custom_id"] for line in out.getvalue().splitlines()]


@pytest.fixture
async def scene(tmp_path):
    db = Database(f"sqlite:///{tmp_path}/gaelp.db")
    await db.migrate()

    async def make(count=20, *, node=None, within_s=None, prompt="p"):
        batches = Batches(db)
        batch = await batches.create(tier=Tier.BATCH, name="", now=BEGIN)
        line = json.dumps({"prompt": prompt}).encode() + b"\n"
        file = io.BytesIO(line * count)
        read = await take_in(
            batches, batch, file, Defaults(), Settings(), within_s=within_s, now=lambda: BEGIN
        )
        return Scene(batches, read, node or Node())

    yield make
    await db.close()


def numbers(first, last):
    return [str(number) for number in range(first, last + 1)]


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
