"""How `gaelp schedule` tells of a schedule: in words, and as JSON values."""

from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from gaelp_tasks.models.schedule import INVOKE, Schedule
from gaelp_tasks.upcoming import facts_of, upcoming

if TYPE_CHECKING:
    from gaelp_tasks.db.schedules import Kept

__all__ = ["facts_of", "last_of", "local", "next_of", "printable", "state_of", "upcoming", "what_of"]

TEXT_COLUMNS = 40  #: of a prompt


def state_of(kept: "Kept") -> str:
    """Why its next due time is not simply the next; '' where it is."""
    if kept.schedule.paused:
        return "paused"
    if kept.standing.waiting:
        return f"waits since {local(kept.standing.waiting, kept.schedule)}"
    return "" if kept.next_due else "over"


def next_of(kept: "Kept") -> str:
    """When it is due next, or why that cannot be told so."""
    state = state_of(kept)
    return state or "".join(local(due, kept.schedule) for due in upcoming(kept, 1)) or "now"


def last_of(kept: "Kept") -> str:
    """When it was due last, and the id of that run."""
    told = local(kept.last_due, kept.schedule) if kept.last_due else "-"
    return f"{told} {kept.last_task}" if kept.last_task else told


def local(moment: datetime, schedule: Schedule) -> str:
    """A moment by the clock of its zone."""
    return f"{moment.astimezone(ZoneInfo(schedule.zone)):%Y-%m-%d %H:%M:%S %Z}"


def what_of(schedule: Schedule) -> str:
    """A few words; of a prompt its beginning."""
    if schedule.task != INVOKE:
        return schedule.task
    text = printable(str(schedule.kwargs.get("prompt") or schedule.kwargs.get("messages")))
    return text if len(text) <= TEXT_COLUMNS else f"{text[: TEXT_COLUMNS - 1]}…"


def printable(text: str) -> str:
    """With everything that could move a terminal's cursor written out."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)
