"""Batches in SQL: kept in pieces, one outcome for a line, one conductor at a time, each tenant its own."""

import io
import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from gaelp_tasks.db import batch_pieces, batch_upkeep
from gaelp_tasks.db import batches as module
from gaelp_tasks.db.batch_rows import BATCHES, BatchLineRow
from gaelp_tasks.db.batch_upkeep import give_up, lines_of, prune, stale
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.models.batch import MOVES, BatchState, Counts, LineOutcome, task_id
from gaelp_tasks.models.batch_file import Defaults, Form, Line
from gaelp_tasks.models.batch_work import Ended, LineOf, Reach, TakenOver
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours
from gaelp_tasks.services.batches import PIECE_S, pieces, take_in, write_out
from gaelp_tasks.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)


@pytest.fixture
def batches(db):
    return Batches(db)


async def taken_in(batches, *lines, hours=None, **how):
    """A batch of these lines; mappings are lines of ours."""
    file = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    batch = await batches.create(tier=Tier.BATCH, name="x.jsonl", now=NOW, hours=hours)
    return await take_in(batches, batch, io.BytesIO(file), Defaults(), Settings(), now=lambda: NOW, **how)


def prompts(count):
    return [{"custom_id": f"c{number}", "prompt": f"p{number}"} for number in range(1, count + 1)]


async def written(batches, batch, *, errors=False):
    out = io.StringIO()
    count = await write_out(batches, batch, out, errors=errors)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert count == len(lines)
    return lines


def done(number):
    return Ended(number, LineOutcome.DONE, result=json.dumps({"text": f"r{number}"}))


async def conducted(batches, batch, name="me", ticket=0, **how):
    return await batches.take_over(batch.id, name, ticket=ticket, now=NOW, **{"died": False} | how)


async def test_a_file_becomes_lines_and_bad_ones_harm_no_other(batches):
    batch = await taken_in(
        batches,
        {"custom_id": "a", "prompt": "Hi"},
        b"{bad",
        b"",
        {"custom_id": "a", "prompt": "again"},
        {"custom_id": "b", "prompt": "Hi", "colour": 1},
        {"prompt": "five"},
        within_s=60,
    )
    assert batch.state is BatchState.IN_PROGRESS
    assert batch.counts == Counts(total=5, invalid=3)
    assert (batch.started_at, batch.expires_at) == (NOW, LATER)
    errors = await written(batches, batch, errors=True)
    assert [(error["custom_id"], error["error"]["line"]) for error in errors] == [
        (None, 2),
        (None, 4),
        ("b", 5),
    ]
    assert "the id of an earlier line" in errors[1]["error"]["message"]
    [first, second] = await batches.next_lines(batch.id, after=0, most=9)
    assert [first.number, second.number] == [1, 6]
    assert second.task_id == task_id(batch.id, "6")


async def test_ids_may_be_given_twice_in_pieces_far_apart(batches, monkeypatch):
    monkeypatch.setattr("gaelp_tasks.services.batches.PIECE", 2)
    batch = await taken_in(batches, *prompts(5), *prompts(5))
    assert batch.counts == Counts(total=10, invalid=5)


@pytest.mark.parametrize("lines", [(), (b"{",)])
async def test_a_file_without_a_single_request_fails(batches, lines):
    batch = await taken_in(batches, *lines)
    assert batch.state is BatchState.FAILED
    assert batch.trouble.endswith(".")
    assert batch.ended_at == NOW


async def test_a_batch_that_is_cancelled_while_it_is_read_is_read_no_further(batches, monkeypatch):
    monkeypatch.setattr("gaelp_tasks.services.batches.PIECE", 1)
    batch = await batches.create(tier=Tier.BATCH, name="", now=NOW)
    added = batches.add

    async def add_and_cancel(*args, **how):
        await added(*args, **how)
        await batches.move(batch.id, BatchState.CANCELLING, now=NOW)

    monkeypatch.setattr(batches, "add", add_and_cancel)
    file = io.BytesIO(b'{"prompt": "x"}\n' * 100)
    read = await take_in(batches, batch, file, Defaults(), Settings())
    assert (read.state, read.counts.total) == (BatchState.CANCELLING, 1)


async def test_a_batch_moves_only_as_the_table_says(batches):
    ways = {BatchState.VALIDATING: []}
    for state in BatchState:  # each is declared behind one that leads to it
        for to in MOVES[state]:
            ways.setdefault(to, [*ways[state], to])
    assert ways.keys() == set(BatchState)
    for before, after in itertools.product(BatchState, BatchState):
        batch = await batches.create(tier=Tier.BATCH, name="", now=NOW)
        for state in ways[before]:
            await batches.move(batch.id, state, now=NOW)
        moved = await batches.move(batch.id, after, now=LATER)
        assert (moved is not None) == (after in MOVES[before])
        [found] = await batches.find(batch.id)
        assert found.state is (after if moved else before)
        assert (found.ended_at is not None) == found.is_over


async def test_what_has_ended_is_noted_once_and_told_in_order(batches):
    batch = await taken_in(batches, *prompts(4))
    await conducted(batches, batch)
    ended = [done(3), Ended(1, LineOutcome.FAILED, "NodeFailed", "It broke."), done(2)]
    told = await batches.progress(batch.id, "me", ended, Reach(3, 0, 0), now=NOW)
    assert told.counts == Counts(total=4, done=2, failed=1)
    told = await batches.progress(batch.id, "me", [*ended, done(1)], Reach(3, 0, 0), now=NOW)
    assert told.counts == Counts(total=4, done=2, failed=1)
    assert [line["custom_id"] for line in await written(batches, batch)] == ["c2", "c3"]
    [error] = await written(batches, batch, errors=True)
    assert (error["custom_id"], error["error"]["code"]) == ("c1", "NodeFailed")


async def test_who_has_been_followed_is_refused(batches):
    batch = await taken_in(batches, *prompts(2))
    await conducted(batches, batch, "old")
    await conducted(batches, batch, "new")
    with pytest.raises(TakenOver):
        await batches.progress(batch.id, "old", [done(1)], Reach(1), now=NOW)
    with pytest.raises(TakenOver):
        await batches.close_rest(batch.id, "old", LineOutcome.EXPIRED, "So.", now=NOW)
    with pytest.raises(TakenOver):
        await batches.move(batch.id, BatchState.FINALIZING, now=NOW, conductor="old")
    await batches.leave(batch.id, "old", Reach(9, 9, 9), now=NOW)
    assert (await batches.progress(batch.id, "new", [done(1)], Reach(1), now=NOW)).counts.done == 1


async def test_who_follows_knows_whether_all_was_left_in_order(batches):
    batch = await taken_in(batches, *prompts(5))
    held = await conducted(batches, batch, "first")
    assert (held.reach, held.in_order, held.deaths) == (Reach(), True, 0)
    await batches.progress(batch.id, "first", [], Reach(3, 0, 1), now=NOW)
    held = await conducted(batches, batch, "second", died=True)
    assert (held.reach, held.in_order, held.deaths) == (Reach(3, 3, 1), False, 1)
    await batches.leave(batch.id, "second", Reach(4, 3, 2), now=NOW)
    held = await conducted(batches, batch, "third")
    assert (held.reach, held.in_order, held.deaths) == (Reach(4, 3, 2), True, 1)
    await batches.progress(batch.id, "third", [done(1)], Reach(4, 3, 2), now=NOW)
    assert (await conducted(batches, batch, "fourth")).deaths == 0, "there was progress"


async def test_an_older_call_is_void(batches):
    batch = await taken_in(batches, *prompts(1))
    assert await batches.summon(batch.id, now=NOW) == 1
    with pytest.raises(TakenOver):
        await conducted(batches, batch, ticket=0)
    assert (await conducted(batches, batch, ticket=1)).batch.id == batch.id


async def test_what_was_published_before_is_found_again_in_pieces(batches, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 2)
    batch = await taken_in(batches, *prompts(3), b"{bad", *({"prompt": str(n)} for n in range(4)))
    await conducted(batches, batch)
    await batches.progress(batch.id, "me", [done(2)], Reach(7), now=NOW)
    pieces = [some async for some in batches.published(batch.id, after=1, to=7)]
    found = [line for some in pieces for line in some]
    assert [(line.number, line.is_open) for line in found] == [
        (2, False),
        (3, True),
        (5, True),
        (6, True),
        (7, True),
    ]
    assert max(map(len, pieces)) <= 2


async def test_long_lines_are_read_a_few_at_a_time(batches, monkeypatch):
    monkeypatch.setattr(batch_pieces, "PIECE_BYTES", 1000)
    batch = await taken_in(batches, *({"prompt": "x" * size} for size in (100, 100, 2000, 100)))
    numbers = [line.number for line in await batches.next_lines(batch.id, after=0, most=9)]
    pieces = [[line.number for line in some] async for some in batches.asked(batch.id, numbers)]
    assert pieces == [[1, 2], [3], [4]]
    [[line]] = [some async for some in batches.asked(batch.id, [2])]
    assert json.loads(line.arguments)["prompt"] == "x" * 100


async def test_the_rest_is_closed_and_what_has_ended_stays(batches):
    batch = await taken_in(batches, *prompts(5))
    await conducted(batches, batch)
    await batches.progress(batch.id, "me", [done(2)], Reach(3), now=NOW)
    assert await batches.close_rest(batch.id, "me", LineOutcome.CANCELLED, "So.", now=NOW) == 4
    assert await batches.close_rest(batch.id, "me", LineOutcome.CANCELLED, "So.", now=NOW) == 0
    [found] = await batches.find(batch.id)
    assert found.counts == Counts(total=5, done=1, cancelled=4)
    assert [line["custom_id"] for line in await written(batches, batch)] == ["c2"]
    errors = await written(batches, batch, errors=True)
    assert [line["custom_id"] for line in errors] == ["c1", "c3", "c4", "c5"]


async def test_a_batch_is_found_by_how_its_id_begins(batches):
    first = await batches.create(tier=Tier.BATCH, name="", now=NOW)
    second = await batches.create(tier=Tier.BACKGROUND, name="", now=NOW)
    assert [one.id for one in await batches.find(first.id[:20])] == [first.id]
    assert [one.id for one in await batches.find(first.id.removeprefix("batch_"))] == [first.id]
    assert len(await batches.find("batch_")) == 2
    assert await batches.find("%") == []
    assert [one.id for one in await batches.newest(9)] == [second.id, first.id]


async def test_nobody_sees_or_moves_what_is_another_tenants(db, batches):
    batch = await taken_in(batches, *prompts(2))
    await conducted(batches, batch)
    await batches.progress(batch.id, "me", [done(1)], Reach(1), now=NOW)
    other = Batches(db, "other")
    assert await other.find(batch.id) == []
    assert await other.newest(9) == []
    for asked in (
        other.move(batch.id, BatchState.CANCELLING, now=NOW),
        other.summon(batch.id, now=NOW),
        other.next_lines(batch.id, after=0, most=9),
        other.take_over(batch.id, "x", ticket=9, now=NOW, died=False),
        other.progress(batch.id, "me", [done(2)], Reach(), now=NOW),
        written(other, batch),
    ):
        with pytest.raises(TakenOver):
            await asked


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


async def test_an_invocation_is_found_in_the_batch_whose_line_it_is(db, batches, monkeypatch):
    batch = await taken_in(batches, *prompts(3))
    theirs = await taken_in(Batches(db, "other"), *prompts(1))
    await conducted(batches, batch)
    await batches.progress(batch.id, "me", [done(2)], Reach(3), now=NOW)
    mine = [task_id(batch.id, f"c{number}") for number in (2, 3)]
    others = task_id(theirs.id, "c1")
    monkeypatch.setattr(batch_upkeep, "AT_ONCE", 2)
    found = [LineOf(mine[0], batch.id, 2, is_open=False), LineOf(mine[1], batch.id, 3, is_open=True)]
    asked = [*mine, others, "x"]
    assert await lines_of(db, asked, "") == found
    assert await lines_of(db, asked, None) == [*found, LineOf(others, theirs.id, 1, is_open=True)]


async def test_when_the_last_lines_ended_is_told_without_bad_ones_and_those_that_are_open(
    db, batches, monkeypatch
):
    batch = await taken_in(batches, *prompts(6), b"{bad", *prompts(9)[6:])
    await conducted(batches, batch)
    assert await batches.lately(batch.id) == []
    for number in (1, 3, 2, 5):
        at = NOW + timedelta(seconds=number)
        await batches.progress(batch.id, "me", [done(number)], Reach(8), now=at)
    ends = [NOW + timedelta(seconds=number) for number in (5, 3, 2, 1)]
    assert await batches.lately(batch.id) == ends
    monkeypatch.setattr(module, "PIECE", 3)
    assert await batches.lately(batch.id) == ends[:2], "and the bad line"
    assert await Batches(db, "other").lately(batch.id) == []


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


async def test_lines_that_come_slowly_are_kept_all_the_same():
    now = itertools.count(step=PIECE_S / 2)
    file = io.BytesIO(b'{"prompt": "x"}\n' * 9)
    sizes = [len(piece) for piece in pieces(file, Defaults(), Settings(), tick=lambda: next(now))]
    assert sum(sizes) == 9
    assert max(sizes) <= 2
    assert [len(piece) for piece in pieces(io.BytesIO(b"{}\n" * 9), Defaults(), Settings())] == [9]


async def test_the_lines_that_are_still_open_are_found_whatever_ended_before_and_behind_them(batches):
    batch = await taken_in(batches, *prompts(9))
    await conducted(batches, batch)
    await batches.progress(batch.id, "me", [done(1), done(3), done(7)], Reach(7, 0, 6), now=NOW)
    found = await batches.open_lines(batch.id, to=7)
    assert [line.number for line in found] == [2, 4, 5, 6]
    with pytest.raises(TakenOver):
        await batches.open_lines("batch_none", to=7)


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
