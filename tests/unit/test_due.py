"""When schedules are due, what was missed, and what is published now; property tests over all policies."""

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gaelp_tasks.due import LATE, Drop, Fire, Hold, Standing, candidate, decide, latest, next_due, times
from gaelp_tasks.models.schedule import Missed, Overlap, Schedule

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)  # a Friday
NIGHTS = [{"start": "22:00", "end": "06:00"}]


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def scheduled(**given) -> Schedule:
    timing = {} if {"cron", "at"} & given.keys() else {"interval_s": 60}
    return Schedule.parse({"name": "x", "task": "shop.x", **timing, **given})


def between(schedule, after, until):
    return list(takewhile(lambda due: due <= until, times(schedule, after)))


def played(schedule, standing, moments, *, goes_on=False, is_idle=True):
    """The due times that are published when beat looks at these moments; and how it stands after that."""
    fired = []
    for now in moments:
        while True:
            found = candidate(schedule, standing, now)
            if found is None:
                break
            if not isinstance(found, Drop):
                assert standing.until < found <= now
                found = decide(schedule, standing, found, now, goes_on=goes_on, is_idle=is_idle)
            match found:
                case Fire(due, _):
                    fired.append(due)
                    standing = Standing(due)
                case Drop(until):
                    assert until > standing.until
                    standing = Standing(until)
                case Hold(since):
                    assert standing.waiting in (None, since), "what waits keeps its place"
                    standing = Standing(standing.until, since)
                    break
    return fired, standing


def test_an_interval_counts_from_its_start():
    schedule = scheduled(interval_s=90, start=NOON.isoformat())
    assert list(islice(times(schedule, NOON - seconds(1)), 3)) == [
        NOON,
        NOON + seconds(90),
        NOON + seconds(180),
    ]
    assert next_due(schedule, NOON) == NOON + seconds(90)
    assert next_due(schedule, datetime(2020, 1, 1, tzinfo=UTC)) == NOON


def test_nothing_is_due_after_its_end_or_outside_its_windows():
    schedule = scheduled(cron="0 * * * *", windows=NIGHTS, end="2026-11-21T00:30:00Z")
    assert [due.hour for due in times(schedule, NOON)] == [22, 23, 0]


def test_a_one_off_is_due_once():
    schedule = scheduled(at=NOON.isoformat())
    assert list(times(schedule, NOON - seconds(1))) == [NOON]
    assert list(times(schedule, NOON)) == []


def test_times_that_no_window_lets_through_end():
    assert next_due(scheduled(cron="0 12 * * *", windows=NIGHTS), NOON) is None


def test_a_rare_day_in_a_rare_window_is_found():
    found = next_due(
        scheduled(cron="0 0 29 2 *", windows=[{"start": "00:00", "end": "01:00", "days": ["mon"]}]), NOON
    )
    assert found == datetime(2044, 2, 29, tzinfo=UTC)


def test_a_window_at_the_hour_that_comes_twice_ends_nothing():
    schedule = scheduled(
        zone="Europe/Berlin",
        interval_s=600,
        windows=[{"start": "02:15", "end": "02:25"}],
        start="2026-10-25T00:00Z",
    )
    found = list(islice(times(schedule, datetime(2026, 10, 25, tzinfo=UTC)), 3))
    assert [f"{due:%d %H:%M}" for due in found] == ["25 00:20", "25 01:20", "26 01:20"]


intervals = st.integers(1, 5000).map(float)
offsets = st.integers(0, 10**6).map(lambda ms: timedelta(milliseconds=ms))
windows = st.sampled_from(
    [[], NIGHTS, [{"start": "11:50", "end": "12:10"}], [{"start": "12:00", "end": "12:01"}]]
)
schedules = st.one_of(
    st.builds(lambda s, w: scheduled(interval_s=s, windows=w), intervals, windows),
    st.builds(
        lambda c, z: scheduled(cron=c, zone=z),
        st.sampled_from(["* * * * *", "*/7 * * * *", "0 2 * * *", "30 2 29 2 *", "0 12 * * 5"]),
        st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    ),
    st.builds(lambda o: scheduled(at=(NOON + o).isoformat()), offsets),
)


@settings(deadline=None)
@given(schedules, offsets)
def test_due_times_grow_and_are_found_from_any_moment_between(schedule, offset):
    found = list(islice(times(schedule, NOON), 4))
    assert found == sorted(set(found))
    assert all(due > NOON and schedule.in_window(due) for due in found)
    if len(found) > 1:
        between = min(found[0] + offset, found[1] - timedelta(microseconds=1))
        assert next_due(schedule, between) == found[1]


@settings(deadline=None)
@given(schedules, offsets, offsets)
def test_the_latest_is_the_last_of_all(schedule, first, second):
    after, until = sorted((NOON + first, NOON + second))
    every = between(schedule, after, until)
    assert latest(schedule, after, until) == (every[-1] if every else None)


looks = st.lists(st.integers(1, 60_000), min_size=1, max_size=12)  # ms between two looks of beat
policies = st.sampled_from(list(Missed))


@settings(deadline=None)
@example(scheduled(interval_s=1.0, windows=[]), Missed.SKIP, [15_000])  # one is just as late as it may be
@given(schedules, policies, looks)
def test_whatever_is_seen_in_time_is_published_just_once(schedule, missed, gaps):
    schedule = schedule.model_copy(update={"missed": missed})
    moments, now = [], NOON
    for gap in gaps:
        now += timedelta(milliseconds=gap)
        moments.append(now)
    fired, standing = played(schedule, Standing(NOON), moments)
    every = between(schedule, NOON, now)
    assert fired == sorted(set(fired))
    assert set(fired) <= set(every)
    seen = [NOON, *moments]
    in_time = [due for due in every if next(look for look in seen if look >= due) - due <= LATE]
    assert set(in_time) <= set(fired)
    if missed is Missed.ALL:
        assert fired == every
    if missed is Missed.SKIP:
        assert fired == in_time
    assert candidate(schedule, standing, now) is None or isinstance(candidate(schedule, standing, now), Drop)


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("once", 1), ("all", 5)])
def test_what_was_missed_is_made_up_for_as_the_policy_says(missed, count):
    schedule = scheduled(interval_s=60, start=NOON.isoformat(), missed=missed)
    fired, _ = played(schedule, Standing(NOON), [NOON + seconds(330)])
    assert fired == [NOON + seconds(60 * (5 - count + 1 + n)) for n in range(count)]


@settings(deadline=None)
@given(st.integers(1, 30 * 86_400))
def test_a_month_of_seconds_that_was_missed_is_little_work(length):
    schedule = scheduled(interval_s=1)
    now = NOON + seconds(length)
    fired, _ = played(schedule, Standing(NOON), [now])
    assert fired[-1] == now
    assert len(fired) <= LATE / seconds(1) + 1


def test_an_overlapping_run_is_left_out_waits_or_cancels_the_old_one():
    due, now = NOON, NOON + seconds(1)
    told = {
        overlap: decide(
            scheduled(overlap=overlap), Standing(NOON - seconds(60)), due, now, goes_on=True, is_idle=True
        )
        for overlap in Overlap
    }
    assert told == {"skip": Drop(due), "queue": Hold(due), "cancel": Fire(due, cancel=True)}


def test_what_was_missed_and_is_all_wanted_waits_for_the_run_before():
    schedule = scheduled(missed="all", overlap="skip")
    late = NOON + LATE + seconds(1)
    asked = (schedule, Standing(NOON - seconds(60)), NOON, late)
    assert decide(*asked, goes_on=True, is_idle=True) == Hold(NOON)
    assert decide(*asked, goes_on=False, is_idle=True) == Fire(NOON, cancel=False)


def test_what_waits_for_a_quiet_moment_is_one_run_in_the_end_however_long_it_took():
    schedule = scheduled(interval_s=60, only_when_idle=True, missed="skip", start=NOON.isoformat())
    moments = [NOON + seconds(60 + n) for n in range(0, 600, 7)]
    fired, standing = played(schedule, Standing(NOON), moments, is_idle=False)
    assert fired == []
    assert standing.waiting == NOON + seconds(60)
    fired, _ = played(schedule, standing, [NOON + seconds(700)])
    assert fired == [NOON + seconds(660)]


def test_each_of_those_that_wait_runs_where_each_is_wanted():
    schedule = scheduled(interval_s=60, overlap="queue", missed="all", start=NOON.isoformat())
    _, standing = played(schedule, Standing(NOON), [NOON + seconds(250)], goes_on=True)
    fired, _ = played(schedule, standing, [NOON + seconds(251)])
    assert fired == [NOON + seconds(60 * n) for n in (1, 2, 3, 4)]


def test_a_run_of_the_night_that_was_missed_waits_for_the_next_night():
    schedule = scheduled(cron="0 2 * * *", windows=NIGHTS)
    yesterday = NOON - timedelta(days=1)
    fired, standing = played(schedule, Standing(yesterday), [NOON, NOON + timedelta(hours=9)])
    assert fired == []
    fired, _ = played(schedule, standing, [NOON + timedelta(hours=10)])
    assert fired == [NOON.replace(hour=2)]


def test_a_run_at_the_last_moment_of_its_window_is_published_behind_it():
    schedule = scheduled(cron="59 5 * * *", windows=[{"start": "22:00", "end": "05:59:01"}])
    due = NOON.replace(hour=5, minute=59)
    fired, _ = played(schedule, Standing(due - seconds(60)), [due + seconds(3)])
    assert fired == [due]


def test_a_run_that_expired_while_it_waited_is_dropped():
    schedule = scheduled(at=NOON.isoformat(), expires_s=30, only_when_idle=True)
    fired, standing = played(schedule, Standing(NOON - seconds(1)), [NOON + seconds(29)], is_idle=False)
    assert standing.waiting == NOON
    fired, standing = played(schedule, standing, [NOON + seconds(31)])
    assert fired == []
    assert standing == Standing(NOON + seconds(31))


def test_a_clock_that_was_put_back_publishes_nothing_twice():
    assert candidate(scheduled(interval_s=1), Standing(NOON), NOON - timedelta(hours=1)) is None
