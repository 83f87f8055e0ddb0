"""The static table: what is published when, whatever anybody schedules besides."""

from datetime import timedelta
from typing import Any

__all__ = ["STATIC"]

#: Entries as Celery's beat_schedule has them.
STATIC: dict[str, dict[str, Any]] = {
    "expire abandoned streams": {
        "task": "gaelp.maintenance.expire_abandoned_streams",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600.0},  # a missed one is not made up for
    },
    "expire lost attachments": {
        "task": "gaelp.maintenance.expire_lost_attachments",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600.0},
    },
    "record history": {
        "task": "gaelp.maintenance.record_history",
        "schedule": timedelta(seconds=10),
        "options": {"expires": 10.0},
    },
    "prune history": {
        "task": "gaelp.maintenance.prune_history",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600.0},
    },
    "prune batches": {
        "task": "gaelp.maintenance.prune_batches",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600.0},
    },
    "resume training jobs": {
        "task": "gaelp.maintenance.resume_jobs",
        "schedule": timedelta(seconds=15),
        "options": {"expires": 15.0},
    },
    "prune training jobs": {
        "task": "gaelp.maintenance.prune_jobs",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600.0},
    },
    "resume batches": {
        "task": "gaelp.maintenance.resume_batches",
        "schedule": timedelta(seconds=15),
        "options": {"expires": 15.0},
    },
}
