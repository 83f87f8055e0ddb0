"""Schedules in SQL, on SQLite and PostgreSQL: a name for each tenant, edits, and who may write down what."""

from datetime import UTC, datetime, timedelta

import pytest

from gaelp_tasks.db.schedules import LOOK_AGAIN, UNREAD, Schedules, Timetable
from gaelp_tasks.due import Drop, Fire, Hold, Standing
from gaelp_tasks.models.schedule import InvalidSchedule, Schedule

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def minutely(name="x", **given):
    return Schedule.parse(
        {"name": name, "task": "shop.x", "interval_s": 60, "start": NOON.isoformat(), **given}
    )


@pytest.fixture
def mine(db):
    return Schedules(db, "mine")


@pytest.fixture
def timetable(db):
    return Timetable(db)


async def test_a_schedule_comes_back_as_it_went_in(mine):
    given = minutely(
        args=["a", 1],
        kwargs={"b": {"c": [None]}},
        expires_s=1.5,
        windows=[{"start": "22:00", "end": "06:00"}],
    )
    kept = await mine.add(given, NOON)
    assert await mine.find("x") == kept
    assert await mine.listed() == [kept]
    assert kept.schedule == given
    assert kept.standing == Standing(NOON)
    assert kept.next_due == NOON.replace(hour=22)


async def test_a_name_is_unique_for_its_tenant(db, mine):
    await mine.add(minutely(), NOON)
    with pytest.raises(InvalidSchedule, match="already"):
        await mine.add(minutely(), NOON)
    theirs = Schedules(db, "theirs")
    await theirs.add(minutely(), NOON)
    await mine.add(minutely("y"), NOON)
    with pytest.raises(InvalidSchedule, match="already"):
        await mine.change("y", minutely("x"), NOON)
    assert await theirs.change("y", minutely("z"), NOON) is None
    assert await theirs.remove("y") is None
    assert await theirs.pause("y", NOON, paused=True) is None
    assert [kept.schedule.name for kept in await mine.listed()] == ["x", "y"]
    assert [kept.schedule.name for kept in await theirs.listed()] == ["x"]


async def test_beat_sees_what_is_due_in_its_order(mine, timetable):
    await mine.add(minutely("late", interval_s=120), NOON)
    await mine.add(minutely("soon"), NOON)
    await mine.add(minutely("paused", interval_s=30, paused=True), NOON)
    due = await timetable.due(NOON + MINUTE, 10)
    assert [kept.schedule.name for kept in due.kept] == ["soon"]
    assert due.next_at == NOON + 2 * MINUTE
    due = await timetable.due(NOON + 3 * MINUTE, 10)
    assert [kept.schedule.name for kept in due.kept] == ["soon", "late"]
    assert due.next_at is None
    assert len((await timetable.due(NOON + 3 * MINUTE, 1)).kept) == 1


async def test_what_was_decided_is_written_down_once(mine, timetable):
    kept = await mine.add(minutely(), NOON)
    fire = Fire(NOON + MINUTE, cancel=False)
    assert await timetable.note(kept, fire, NOON + MINUTE, 7)
    assert not await timetable.note(kept, fire, NOON + MINUTE, 8), "it was decided already"
    there = await mine.find("x")
    assert (there.last_due, there.last_task) == (NOON + MINUTE, kept.run_id(NOON + MINUTE))
    assert there.next_due == NOON + 2 * MINUTE
    assert not await timetable.note(there, Drop(NOON + 3 * MINUTE), NOON, 6), "by one that was deposed"
    assert await timetable.note(there, Drop(NOON + 3 * MINUTE), NOON, 8)
    there = await mine.find("x")
    assert there.next_due == NOON + 4 * MINUTE
    assert there.last_due == NOON + MINUTE


async def test_what_waits_is_looked_at_again_behind_the_others(mine, timetable):
    await mine.add(minutely("waits"), NOON)
    await mine.add(minutely("goes"), NOON)
    now = NOON + MINUTE
    waits = await mine.find("waits")
    assert await timetable.note(waits, Hold(now), now, 1)
    assert [kept.schedule.name for kept in (await timetable.due(now, 10)).kept] == ["goes"]
    due = await timetable.due(now + LOOK_AGAIN, 10)
    assert [kept.schedule.name for kept in due.kept] == ["goes", "waits"]
    assert due.kept[1].standing == Standing(NOON, now)
    await timetable.note(due.kept[1], Fire(now, cancel=False), now, 1)
    assert (await mine.find("waits")).standing == Standing(now)


async def test_an_edit_between_a_publication_and_its_note_is_kept(mine, timetable):
    kept = await mine.add(minutely(), NOON)
    await mine.change("x", minutely(kwargs={"a": 1}), NOON + MINUTE)
    assert await timetable.note(kept, Fire(NOON + MINUTE, cancel=False), NOON + MINUTE, 1)
    there = await mine.find("x")
    assert there.schedule.kwargs == {"a": 1}
    assert there.standing == Standing(NOON + MINUTE)


async def test_an_edit_of_another_release_in_between_does_not_undo_the_note(db, mine, timetable):
    kept = await mine.add(minutely(), NOON)
    async with db.writing() as session:
        row = await mine._row(session, "x")
        row.spec = {**row.spec, "of_the_future": True}
    now = NOON + MINUTE
    assert await timetable.note(kept, Fire(now, cancel=False), now, 1)
    async with db.reading() as session:
        row = await mine._row(session, "x")
    assert (row.decided_until, row.last_task, row.next_due) == (now, kept.run_id(now), now + UNREAD)
    [sentence] = (await timetable.due(now + UNREAD, 9)).unread
    assert "another release" in sentence


async def test_a_tenant_whose_name_is_too_long_has_no_schedules(db):
    with pytest.raises(InvalidSchedule, match="tenant: no name is longer than 200 characters"):
        await Schedules(db, "t" * 201).add(minutely(), NOON)


async def test_new_times_count_from_the_edit_and_other_edits_drop_nothing(mine):
    await mine.add(minutely(), NOON)
    later = NOON + 5 * MINUTE
    await mine.change("x", minutely(queue="q"), later)
    assert (await mine.find("x")).standing == Standing(NOON), "what is due is still to be decided"
    await mine.change("x", minutely(interval_s=120), later)
    there = await mine.find("x")
    assert there.standing == Standing(later)
    assert there.next_due == NOON + 6 * MINUTE
    with pytest.raises(InvalidSchedule, match="Nothing is ever due"):
        await mine.change("x", minutely(end=(NOON + MINUTE).isoformat()), later)


async def test_what_was_due_while_it_was_paused_is_not_made_up_for(mine):
    await mine.add(minutely(), NOON)
    await mine.pause("x", NOON, paused=True)
    assert (await mine.find("x")).schedule.paused
    await mine.pause("x", NOON + 10 * MINUTE, paused=False)
    there = await mine.find("x")
    assert (there.standing.until, there.next_due) == (NOON + 10 * MINUTE, NOON + 11 * MINUTE)
    await mine.pause("x", NOON + 20 * MINUTE, paused=False)
    assert await mine.find("x") == there, "it was not paused"


async def test_a_run_that_was_asked_for_at_once_counts_as_the_last(mine):
    await mine.add(minutely(), NOON)
    await mine.ran("x", "an-id")
    there = await mine.find("x")
    assert (there.last_task, there.last_due) == ("an-id", None)
    await mine.remove("x")
    assert await mine.find("x") is None
