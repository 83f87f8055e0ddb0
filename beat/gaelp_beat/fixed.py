"""When entries of Celery's kind are due: those of the static table, and an app's own `beat_schedule`.

How far each has come is in Redis, so that whichever beat leads goes on from there. What was missed while no
beat lived is one run, as with Celery's own beat.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from celery.schedules import schedule as interval

__all__ = ["Turn", "id_of", "next_ms", "run_id", "turn"]

SPACE = UUID("0d1c6f5e-7b1b-5f0e-9a57-3f0f7f3a2b44")  #: of our entries; another one would make other ids
LATE_MS = 10_000  #: as in gaelp_tasks.due


class Turn(NamedTuple):
    """A run that is due."""

    due_ms: int
    until_ms: int  #: its other times up to here are made up for with it


def id_of(name: str) -> str:
    """Of an entry, among the schedules' ids."""
    return f"fixed:{name}"


def run_id(name: str, due_ms: int) -> str:
    """The task id of an entry's run: the same for everybody who publishes it."""
    return str(uuid5(SPACE, f"{name} {due_ms}"))


def next_ms(schedule: Any, after_ms: int) -> int:
    """When a Celery schedule is due after a moment, both in Unix ms."""
    if type(schedule) is interval and not schedule.relative:
        every: timedelta = schedule.run_every
        return after_ms + max(1, round(every.total_seconds() * 1000))
    after = datetime.fromtimestamp(after_ms / 1000, UTC)
    before, schedule.nowfun = schedule.nowfun, lambda: after  # its answer counts from now
    try:
        left: timedelta = schedule.remaining_estimate(after)
    finally:
        schedule.nowfun = before
    due = after + left
    return max(after_ms + 1, round(due.timestamp() * 1000))


def turn(schedule: Any, published_ms: int, now_ms: int) -> Turn | None:
    """What is due of an entry that is published up to a moment; None where nothing is."""
    due_ms = next_ms(schedule, published_ms)
    if due_ms > now_ms:
        return None
    return Turn(due_ms, due_ms if now_ms - due_ms <= LATE_MS else now_ms)
