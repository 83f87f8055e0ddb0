"""Cron expressions as Debian's cron reads them: the only door to cronsim. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

__all__ = ["check", "times"]

#: what people write in place of five fields
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS = "minute hour day-of-month month day-of-week"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
CHANGE = timedelta(days=2)  #: before what comes next after one; further back nothing is missed
NO_TIME = datetime(2000, 1, 1, tzinfo=UTC)  #: whether an expression ever matches is looked for from here


def _fields(expression: str) -> str:
    return NICKNAMES.get(expression.strip().lower(), expression)


def check(expression: str) -> None:
    """Raises ValueError where this is no cron expression, or one that never matches."""
    fields = _fields(expression)
    if len(fields.split()) != len(FIELDS.split()):  # cronsim would take seconds, too, and Debian does not
        raise ValueError(f"write five fields ({FIELDS}), as in '0 2 * * *', or a name such as @daily")
    try:
        first = next(CronSim(fields, NO_TIME), None)
    except CronSimError as error:
        raise ValueError(f"cannot be read ({str(error).lower()}); its fields are {FIELDS}") from None
    if first is None:
        raise ValueError("no such day ever comes")


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _passed_over(search: CronSim, after: datetime, until: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """What cronsim, which steps by whole hours, misses where a clock changes by half of one."""
    moment = max(after, until - CHANGE).replace(second=0, microsecond=0) + MINUTE
    while moment < until:
        wall = moment.astimezone(zone)
        there = wall.minute in search.minutes and wall.hour in search.hours and wall.month in search.months
        if there and search.match_day(wall.date()):
            yield moment
        moment += MINUTE


def times(expression: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The moments at which it matches in a time zone, after `after`, in order and in UTC.

    A job at a fixed time that a change to summer time skips runs right after the gap, and one in the hour
    that comes twice runs at the first; one with `*` for its minute or hour goes by real time.
    """
    last = after
    search = CronSim(_fields(expression), after.astimezone(zone))
    for moment in search:
        due = moment.astimezone(UTC)
        if search.fixup_tz is None and (_offset(due, zone) - _offset(last, zone)) % HOUR:
            yield from _passed_over(search, last, due, zone)
        # two fixed times may fall on the same moment behind a gap; from within the hour that comes again
        # the search starts at its first pass
        if due > last:
            yield due
            last = due
