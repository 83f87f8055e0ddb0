"""What becomes of a batch that nobody works on, that is abandoned, or was over long ago."""

import itertools
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from gaelp_tasks.db import batch_pieces
from gaelp_tasks.db import batches as module
from gaelp_tasks.db.batch_rows import BATCHES, BatchLineRow
from gaelp_tasks.db.batch_upkeep import give_up, prune, stale
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.models.batch import BatchState, Counts
from gaelp_tasks.models.batch_file import Form, Line
from gaelp_tasks.models.batch_work import Reach, TakenOver
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours
from support.filled_batches import LATER, NOW, conducted, done, prompts, taken_in, written


async def test_what_nobody_works_on_is_called_for_once(db, batches):
    forsaken = await taken_in(batches, *prompts(1))
    await taken_in(Batches(db, "other"), *prompts(1))
    over = await taken_in(batches, *prompts(1))
    await batches.move(over.id, BatchState.EXPIRED, now=NOW)
    assert await stale(db, before=NOW, now=NOW) == []
    calls = await stale(db, before=LATER, now=LATER)
    assert sorted((call.tenant, call.ticket) for call in calls) == [("", 1), ("other", 1)]
    assert await stale(db, before=LATER, now=LATER) == []
    with pytest.raises(TakenOver):
        await conducted(batches, forsaken, ticket=0)


async def test_one_that_waits_for_its_window_is_called_for_when_that_has_opened(db, batches):
    hours = Hours.parse(["22:00-06:00", "sat 00:00-24:00"], "Europe/Berlin")
    batch = await taken_in(batches, *prompts(1), hours=hours)
    assert batch.hours == hours
    opens = NOW + timedelta(hours=9)
    await conducted(batches, batch)
    await batches.leave(batch.id, "me", Reach(), now=NOW, until=opens)
    assert (await batches.find(batch.id))[0].waits_until == opens
    assert await stale(db, before=opens, now=opens) == [], "whoever has to come has a moment"
    late = opens + timedelta(seconds=16)
    [call] = await stale(db, before=opens + timedelta(seconds=1), now=late)
    held = await conducted(batches, batch, ticket=call.ticket)
    assert (held.in_order, (await batches.find(batch.id))[0].waits_until) == (True, None)


async def test_one_that_is_cancelled_while_it_waits_is_called_for_at_once(db, batches):
    batch = await taken_in(batches, *prompts(1), hours=Hours.parse(["22:00-06:00"]))
    await conducted(batches, batch)
    await batches.leave(batch.id, "me", Reach(1), now=NOW, in_order=False, until=NOW + timedelta(hours=9))
    await batches.move(batch.id, BatchState.CANCELLING, now=NOW)
    [call] = await stale(db, before=LATER, now=LATER)
    assert not (await conducted(batches, batch, ticket=call.ticket)).in_order


async def test_a_file_that_nobody_reads_on_fails_its_batch(db, batches):
    batch = await batches.create(tier=Tier.BATCH, name="", now=NOW)
    await give_up(db, before=NOW, now=LATER)
    assert (await batches.find(batch.id))[0].state is BatchState.VALIDATING
    await give_up(db, before=LATER, now=LATER)
    [found] = await batches.find(batch.id)
    assert (found.state, found.ended_at) == (BatchState.FAILED, LATER)
    assert await stale(db, before=LATER + timedelta(days=1), now=LATER) == []


async def half_read(batches, count):
    """A batch whose file is being read, so far."""
    batch = await batches.create(tier=Tier.BATCH, name="", now=NOW)
    lines = [Line(number, f"c{number}", Form.OWN, False, "{}") for number in range(1, count + 1)]
    await batches.add(batch.id, lines, now=NOW)
    return batch


async def test_the_lines_of_a_file_that_nobody_reads_on_become_errors(db, batches, monkeypatch):
    monkeypatch.setattr(batch_pieces, "AT_ONCE", 2)
    for count in (5, 3):
        await half_read(batches, count)
    await give_up(db, before=LATER, now=LATER)
    for batch, count in zip(await batches.newest(9), (3, 5), strict=True):
        assert batch.counts == Counts(total=count, failed=count)
        assert batch.counts.open == 0
        errors = await written(batches, batch, errors=True)
        assert [one["custom_id"] for one in errors] == [f"c{number}" for number in range(1, count + 1)]
        assert {one["error"]["code"] for one in errors} == {"batch_failed"}


async def test_a_batch_that_is_abandoned_fails_with_all_its_lines_and_is_read_no_further(batches):
    batch = await half_read(batches, 3)
    await batches.abandon(batch.id, "Why\0not.", now=LATER)
    [found] = await batches.find(batch.id)
    assert (found.state, found.trouble) == (BatchState.FAILED, "Why\N{REPLACEMENT CHARACTER}not.")
    assert found.counts == Counts(total=3, failed=3)
    with pytest.raises(TakenOver):
        await batches.add(batch.id, [], now=LATER)
    await batches.abandon(batch.id, "Again.", now=LATER)
    assert (await batches.find(batch.id))[0] == found
    done_one = await taken_in(batches, *prompts(1))
    await batches.move(done_one.id, BatchState.EXPIRED, now=NOW)
    await batches.abandon(done_one.id, "Too late.", now=LATER)
    assert (await batches.find(done_one.id))[0].state is BatchState.EXPIRED


async def test_who_dies_while_it_abandons_a_batch_is_followed_by_beat(db, batches, monkeypatch):
    monkeypatch.setattr(batch_pieces, "AT_ONCE", 2)
    batch = await half_read(batches, 5)
    close, calls = batch_pieces.fail_some, itertools.count()

    async def dies(*args, **how):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return await close(*args, **how)

    monkeypatch.setattr(module, "fail_some", dies)
    with pytest.raises(KeyboardInterrupt):
        await batches.abandon(batch.id, "So.", now=NOW)
    assert (await batches.find(batch.id))[0].counts == Counts(total=5, failed=2)
    await give_up(db, before=NOW, now=LATER)
    [found] = await batches.find(batch.id)
    assert (found.trouble, found.counts) == ("So.", Counts(total=5, failed=5))


async def test_counts_that_do_not_add_up_hold_up_no_other_batch(db, batches, monkeypatch):
    odd, batch = [await half_read(batches, 2) for _ in range(2)]
    async with db.writing() as session:
        await session.execute(update(BATCHES).where(BATCHES.c.id == odd.id).values(total=9))
    await give_up(db, before=LATER, now=LATER)
    assert (await batches.find(batch.id))[0].counts == Counts(total=2, failed=2)


async def test_what_was_over_long_ago_is_thrown_away_in_pieces_whosever_it_is(db, batches, monkeypatch):
    monkeypatch.setattr(batch_pieces, "AT_ONCE", 2)
    old, young, running = [await taken_in(batches, *prompts(5)) for _ in range(3)]
    theirs = await taken_in(Batches(db, "other"), *prompts(1))
    await batches.move(old.id, BatchState.EXPIRED, now=NOW)
    await batches.move(young.id, BatchState.EXPIRED, now=LATER)
    await Batches(db, "other").move(theirs.id, BatchState.EXPIRED, now=NOW)
    assert await prune(db, NOW) == 0
    assert await prune(db, LATER) == 2
    assert {one.id for one in await batches.newest(9)} == {young.id, running.id}
    assert await Batches(db, "other").newest(9) == []
    async with db.reading() as session:
        assert await session.scalar(select(func.count()).select_from(BatchLineRow)) == 10


async def test_a_line_that_ends_while_its_batch_fails_does_not_make_deaths_forgotten(batches):
    batch = await taken_in(batches, *prompts(2))
    await conducted(batches, batch, died=True)
    await batches.progress(batch.id, "me", [done(1)], Reach(2), now=NOW, forgives=False)
    assert (await conducted(batches, batch)).deaths == 1


async def test_a_batch_that_is_over_can_be_deleted_with_all_it_holds(db, batches, monkeypatch):
    monkeypatch.setattr(batch_pieces, "AT_ONCE", 10)
    batch, other = [await taken_in(batches, *prompts(25)) for _ in range(2)]
    assert not await batches.remove(batch.id), "it is under way"
    await batches.move(batch.id, BatchState.EXPIRED, now=NOW)
    assert not await Batches(db, "other").find(batch.id)
    assert await Batches(db, "other").remove(batch.id), "there is none"
    assert await batches.remove(batch.id)
    assert [one.id for one in await batches.newest(9)] == [other.id]
    async with db.reading() as session:
        assert await session.scalar(select(func.count()).select_from(BatchLineRow)) == 25
