"""A schedule as it stands, as JSON values, with its next due times."""

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from gaelp_tasks.due import times

if TYPE_CHECKING:
    from gaelp_tasks.db.schedules import Kept  # SQLAlchemy takes a while to import

__all__ = ["facts_of", "upcoming"]


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
        "owner": kept.owner or None,
        "created_at": kept.created_at.isoformat(),
        "next": [] if kept.schedule.paused else [due.isoformat() for due in upcoming(kept, most)],
        "waiting_since": kept.standing.waiting and kept.standing.waiting.isoformat(),
        "last_due": kept.last_due and kept.last_due.isoformat(),
        "last_task": kept.last_task,
    }
