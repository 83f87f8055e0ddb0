"""Batches in SQL: kept in pieces, one outcome for a line, one conductor at a time, each tenant its own."""

import io
import itertools
import json
from datetime import timedelta

import pytest

from gaelp_tasks.db import batch_pieces, batch_upkeep
from gaelp_tasks.db import batches as module
from gaelp_tasks.db.batch_upkeep import lines_of
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.models.batch import MOVES, BatchState, Counts, LineOutcome, task_id
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Ended, LineOf, Reach, TakenOver
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import PIECE_S, pieces, take_in
from gaelp_tasks.settings import Settings
from support.filled_batches import LATER, NOW, conducted, done, prompts, taken_in, written


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
