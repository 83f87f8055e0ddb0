"""A year of cron times, daylight-saving changes included, against what Debian's cron does.

The reference here is written anew from crontab(5) and cron(8) and walks over the whole year. croniter,
the other library that people use, is compared too: it differs on the days of a change, and only there.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from gaelp_tasks.models import cron

YEAR = 2026
BEGIN, END = datetime(YEAR, 1, 1, tzinfo=UTC), datetime(YEAR + 1, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=5)  # no expression here means a minute between, and no clock is put on there
#: they change by an hour at 01:00 UTC, at 2 by the wall, at midnight, and by half an hour
ZONES = ("Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe")
FIXED = (
    "30 2 * * *",
    "0 2,3 * * *",
    "15 1 * * *",
    "45 23 31 12 *",
    "0 0 * * 0",
    "5 1-3 1,29 3,10 *",
    "0 9 13 * 5",
)
BY_REAL_TIME = ("*/20 * * * *", "30 * * * *", "*/20 2 * * *", "0 */2 * * *", "0 * 1-7 * 1")


def field(text, first, last):
    """The numbers of a field of a crontab."""
    found = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, _, high = (f"{first}-{last}" if span == "*" else span).partition("-")
        found |= set(range(int(low), int(high or low) + 1, int(step or 1)))
    return found


def matches(expression):
    """Whether a time on the wall is meant."""
    minutes, hours, days, months, weekdays = expression.split()
    at = field(minutes, 0, 59), field(hours, 0, 23), field(months, 1, 12)
    on, week = field(days, 1, 31), {day % 7 for day in field(weekdays, 0, 7)}
    either = not days.startswith("*") and not weekdays.startswith("*")

    def match(wall):
        in_month, in_week = wall.day in on, wall.isoweekday() % 7 in week
        there = wall.minute in at[0] and wall.hour in at[1] and wall.month in at[2]
        return there and ((in_month or in_week) if either else (in_month and in_week))

    return match


class Minute(NamedTuple):
    """A minute of the year, of every five."""

    moment: datetime
    wall: datetime  #: what the clock on the wall shows
    again: bool  #: that the wall has shown this before
    skipped: int  #: steps that the wall has passed over just now


@cache
def walked(zone):
    """The year, by the hour that the wall shows."""
    place, found = ZoneInfo(zone), {}
    shown = BEGIN.astimezone(place).replace(tzinfo=None) - STEP  # the latest so far
    for count in range((END - BEGIN) // STEP + 1):
        moment = BEGIN + count * STEP
        wall = moment.astimezone(place).replace(tzinfo=None)
        ahead = (wall - shown) // STEP
        found.setdefault(wall.hour, []).append(
            Minute(moment, wall, again=ahead < 1, skipped=max(ahead - 1, 0))
        )
        shown = max(shown, wall)
    return found


def changes(zone):
    """The minutes at which the clock on the wall is put on or has come round again."""
    return [minute for hour in walked(zone).values() for minute in hour if minute.again or minute.skipped]


def debian(expression, zone):
    """What cron(8) says: jobs with `*` for the minute or the hour go by real time, others by the wall.

    Of those a time that is skipped is made up for at once, and one that comes twice runs the first time.
    """
    match = matches(expression)
    minute, hour, *_ = expression.split()
    by_real_time = minute.startswith("*") or hour.startswith("*")
    found = {
        each.moment
        for hours in field(hour, 0, 23)
        for each in walked(zone)[hours]
        if (by_real_time or not each.again) and match(each.wall)
    }
    if not by_real_time:
        for each in changes(zone):
            passed = (each.wall - count * STEP for count in range(1, each.skipped + 1))
            found |= {each.moment} if any(map(match, passed)) else set()
    return sorted(found)


def ours(expression, zone):
    before = BEGIN - timedelta(seconds=1)
    return list(takewhile(lambda due: due <= END, cron.times(expression, ZoneInfo(zone), before)))


@pytest.mark.parametrize("zone", ZONES)
def test_a_year_is_as_debian_has_it(zone):
    for expression in (*FIXED, *BY_REAL_TIME):
        assert ours(expression, zone) == debian(expression, zone), expression


@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "15 1 * * *", "0 2,3 * * *", "*/20 2 * * *", "0 9 13 * 5"]
)
def test_croniter_says_the_same_but_on_the_days_of_a_change(expression):
    zone = "Europe/Berlin"
    place = ZoneInfo(zone)
    theirs = set()
    looking = croniter(expression, (BEGIN - timedelta(seconds=1)).astimezone(place))
    while (due := looking.get_next(datetime).astimezone(UTC)) <= END:
        theirs.add(due)
    different = {moment.astimezone(place).date() for moment in theirs ^ set(ours(expression, zone))}
    assert different <= {minute.wall.date() for minute in changes(zone)}


@pytest.mark.parametrize(
    ("expression", "zone", "day", "ours_at", "theirs_at"),
    [
        # 02:30 does not exist: both run it as the clock jumps
        ("30 2 * * *", "Europe/Berlin", "2026-03-29", ["01:00"], ["01:00"]),
        # 02:30 comes twice: Debian runs it once
        ("30 2 * * *", "Europe/Berlin", "2026-10-25", ["00:30"], ["00:30", "01:30"]),
    ],
)
def test_where_croniter_differs_debian_is_as_we_are(expression, zone, day, ours_at, theirs_at):
    place, begin = ZoneInfo(zone), datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    end = begin + timedelta(days=1)
    mine = takewhile(lambda due: due < end, cron.times(expression, place, begin))
    looking = croniter(expression, begin)
    theirs = takewhile(lambda due: due < end, iter(lambda: looking.get_next(datetime), None))
    assert [f"{due:%H:%M}" for due in mine] == ours_at
    assert [f"{due.astimezone(UTC):%H:%M}" for due in theirs] == theirs_at
    assert [f"{due:%H:%M}" for due in debian(expression, zone) if begin <= due < end] == ours_at


@pytest.mark.parametrize(
    "name", ["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@Annually"]
)
def test_a_name_stands_for_five_fields(name):
    cron.check(name)
    first = next(cron.times(name, ZoneInfo("UTC"), datetime(2026, 5, 12, 7, 31, tzinfo=UTC)))
    assert first.minute == first.second == 0


def test_an_hour_that_comes_twice_is_gone_through_once_from_wherever_one_starts():
    place = ZoneInfo("Europe/Berlin")
    second_pass = datetime(2026, 10, 25, 1, 15, tzinfo=UTC)  # 02:15 for the second time
    assert next(cron.times("30 2 * * *", place, second_pass)) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "* * * * * *", "a * * * *", "0 0 30 2 *", "0 0 * * 8", "@x"]
)
def test_what_is_no_expression_is_refused(expression):
    with pytest.raises(ValueError, match=r"fields|day"):
        cron.check(expression)
