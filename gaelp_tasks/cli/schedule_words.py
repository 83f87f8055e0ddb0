"""How `gaelp schedule` tells of a schedule: in words, and as JSON values."""

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from gaelp_tasks.due import times
from gaelp_tasks.models.schedule import INVOKE, Schedule

if TYPE_CHECKING:
    from gaelp_tasks.db.schedules import Kept

__all__ = ["facts_of", "last_of", "local", "next_of", "printable", "state_of", "upcoming", "what_of"]

TEXT_COLUMNS = 40  #: of a prompt


def upcoming(kept: "Kept", most: int) -> list[datetime]:
    """The next due times, at most so many."""
    since = max(kept.standing.until, datetime.now(UTC))
    return list(islice(times(kept.schedule, since), most))


def facts_of(kept: "Kept", most: int) -> dict[str, Any]:
    """Everything as JSON values, with at most so many due times."""
    return {
        **kept.schedule.model_dump(mode="json"),
        "id": str(kept.id),
        "tenant": kept.tenant,
        "created_at": kept.created_at.isoformat(),
        "next": [] if kept.schedule.paused else [due.isoformat() for due in upcoming(kept, most)],
        "waiting_since": kept.standing.waiting and kept.standing.waiting.isoformat(),
        "last_due": kept.last_due and kept.last_due.isoformat(),
        "last_task": kept.last_task,
    }


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
