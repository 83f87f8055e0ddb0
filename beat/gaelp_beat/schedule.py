"""The static table: what is published when, whatever anybody schedules besides."""

from datetime import timedelta
from typing import Any

__all__ = ["STATIC"]

HOUR_S = 3600.0


def _every(seconds: float, task: str) -> dict[str, Any]:
    """An entry as Celery's beat_schedule has them; one that was missed is not made up for."""
    return {"task": task, "schedule": timedelta(seconds=seconds), "options": {"expires": seconds}}


STATIC: dict[str, dict[str, Any]] = {
    "expire abandoned streams": _every(HOUR_S, "gaelp.maintenance.expire_abandoned_streams"),
    "expire lost attachments": _every(HOUR_S, "gaelp.maintenance.expire_lost_attachments"),
    "record history": _every(10.0, "gaelp.maintenance.record_history"),
    "prune history": _every(HOUR_S, "gaelp.maintenance.prune_history"),
    "prune batches": _every(HOUR_S, "gaelp.maintenance.prune_batches"),
    "resume training jobs": _every(15.0, "gaelp.maintenance.resume_jobs"),
    "prune training jobs": _every(HOUR_S, "gaelp.maintenance.prune_jobs"),
    "resume batches": _every(15.0, "gaelp.maintenance.resume_batches"),
}
