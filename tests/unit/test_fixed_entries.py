"""When entries of Celery's kind are due, counted from what is published."""

from datetime import UTC, datetime, timedelta

import pytest
from celery.schedules import crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_beat.fixed import LATE_MS, Turn, next_ms, run_id, turn
from gaelp_tasks import app
from gaelp_tasks.due import LATE

NOON_MS = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("entry", "after_ms", "next_at"),
    [
        (schedule(timedelta(seconds=90), app=app), NOON_MS + 7, NOON_MS + 90_007),
        (schedule(0.25, app=app), NOON_MS, NOON_MS + 250),
        (schedule(3600, relative=True, app=app), NOON_MS + 1000, NOON_MS + HOUR_MS),
        (crontab(minute=30, app=app), NOON_MS, NOON_MS + HOUR_MS // 2),
        (crontab(minute=0, app=app), NOON_MS, NOON_MS + HOUR_MS),
        (crontab(minute=0, app=app), NOON_MS - 1, NOON_MS),
        (crontab(minute=0, hour=2, app=app), NOON_MS, NOON_MS + 14 * HOUR_MS),
    ],
)
def test_an_entry_is_due_as_celery_has_it(entry, after_ms, next_at):
    assert next_ms(entry, after_ms) == next_at
    assert entry.nowfun is None, "the entry is as it was"


def test_what_is_seen_in_time_is_one_run_each_and_what_was_missed_is_one():
    minutely = schedule(60, app=app)
    assert turn(minutely, NOON_MS, NOON_MS + 59_999) is None
    assert turn(minutely, NOON_MS, NOON_MS + 60_000) == Turn(NOON_MS + 60_000, NOON_MS + 60_000)
    assert turn(minutely, NOON_MS, NOON_MS + HOUR_MS) == Turn(NOON_MS + 60_000, NOON_MS + HOUR_MS)
    assert LATE.total_seconds() * 1000 == LATE_MS


@settings(deadline=None)
@given(st.integers(1, 10**5), st.lists(st.integers(1, 10**5), max_size=20))
def test_no_time_of_an_entry_is_published_twice_and_none_in_time_is_left_out(every_ms, gaps):
    entry, published, now, due = schedule(every_ms / 1000, app=app), NOON_MS, NOON_MS, []
    for gap in gaps:
        now += gap
        while found := turn(entry, published, now):
            assert published < found.due_ms <= found.until_ms <= now
            due.append(found.due_ms)
            published = found.until_ms
        assert next_ms(entry, published) > now
    assert due == sorted(set(due))


def test_the_id_of_a_run_tells_entry_and_time():
    ids = {run_id(name, at) for name in ("a", "b") for at in (1, 2)}
    assert len(ids) == 4
    assert run_id("a", 1) in ids
