"""When a schedule is due, which of its runs were missed, and which is published now. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from gaelp_tasks.models import cron
from gaelp_tasks.models.schedule import YEARS, Missed, Overlap, Schedule

__all__ = ["LATE", "Drop", "Fire", "Hold", "Standing", "candidate", "decide", "latest", "next_due", "times"]

LATE = timedelta(seconds=10)  #: what is published so late was not missed: another beat had to take over
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
SPAN = timedelta(minutes=1)  #: looked back over at first
MOST_OPENINGS = 1000  #: of windows in which nothing is due, in a row: years of nights


class Standing(NamedTuple):
    """What was decided of a schedule so far."""

    until: datetime  #: nothing that was due up to here is looked at again
    waiting: datetime | None = None  #: the oldest due time that was seen in time and had to wait


class Fire(NamedTuple):
    """Publish the run of this time."""

    due: datetime
    cancel: bool  #: the run before first


class Hold(NamedTuple):
    """Not yet: it waits for the run before, for a window or for a quiet moment."""

    since: datetime


class Drop(NamedTuple):
    """Nothing that was due up to here is published."""

    until: datetime


def times(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """Its due times after `after`, in order and in UTC; without end, unless it has one."""
    if schedule.start and after < schedule.start:
        after = schedule.start - TICK
    openings = 0
    while openings < MOST_OPENINGS:
        for due in _raw(schedule, after):
            if due.year not in YEARS or (schedule.end and due > schedule.end):
                return
            if not schedule.in_window(due):
                openings += 1
                after = max(schedule.opens(due) - TICK, due)
                break
            yield due
            openings = 0
        else:
            return


def _raw(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """The same without regard to start, end and windows."""
    if schedule.cron is not None:
        yield from cron.times(schedule.cron, ZoneInfo(schedule.zone), after)
    elif schedule.interval_s is not None:
        step = timedelta(seconds=schedule.interval_s)
        first = (schedule.start or EPOCH).astimezone(UTC)
        due = first + max((after - first) // step + 1, 0) * step
        while True:
            yield due
            due += step
    elif schedule.at is not None and schedule.at > after:
        yield schedule.at.astimezone(UTC)


def next_due(schedule: Schedule, after: datetime) -> datetime | None:
    """Its first due time after `after`, None where there is none."""
    return next(times(schedule, after), None)


def latest(schedule: Schedule, after: datetime, until: datetime) -> datetime | None:
    """Its last due time after `after`, `until` at the latest; None where there is none."""
    span = SPAN
    while True:
        since = max(after, until - min(span, until - after))
        found = None
        for due in times(schedule, since):
            if due > until:
                break
            found = due
        if found or since <= after:
            return found
        span *= 2  # not at once over years of seconds


def candidate(schedule: Schedule, standing: Standing, now: datetime) -> datetime | Drop | None:
    """The due time to decide about next; None where nothing is due."""
    if now <= standing.until:  # the clock was put back
        return None
    since = standing.until
    if schedule.expires_s is not None:
        since = max(since, now - timedelta(seconds=schedule.expires_s))
    first = next_due(schedule, since)
    if first is None or first > now:
        return Drop(now)
    if schedule.missed is Missed.ALL:
        return first
    if standing.waiting is not None:  # those that waited are one run by now, the newest
        return latest(schedule, max(since, standing.waiting - TICK), now) or Drop(now)
    fresh = next_due(schedule, max(since, now - LATE - TICK))
    if fresh is not None and fresh <= now:
        return fresh
    return (latest(schedule, since, now) or Drop(now)) if schedule.missed is Missed.ONCE else Drop(now)


def decide(
    schedule: Schedule, standing: Standing, due: datetime, now: datetime, *, goes_on: bool, is_idle: bool
) -> Fire | Hold | Drop:
    """What to do about a candidate.

    `goes_on`: the run before is not over; `is_idle`: nothing is queued or running in a higher tier.
    """
    if goes_on and schedule.overlap is Overlap.SKIP:
        made_up = schedule.missed is Missed.ALL and now - due > LATE  # all of those are wanted, in turn
        return Hold(standing.waiting or due) if made_up else Drop(due)
    in_time = now - due <= LATE or schedule.in_window(now)
    quiet = is_idle or not schedule.only_when_idle
    alone = not goes_on or schedule.overlap is Overlap.CANCEL
    if in_time and quiet and alone:
        return Fire(due, cancel=goes_on)
    return Hold(standing.waiting or due)
