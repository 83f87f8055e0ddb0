"""How often something rare has happened, over all workers: one hash in Redis."""

from contextlib import suppress
from typing import Any

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import unavailable, worded

__all__ = ["EVICTED", "FENCED", "LATE_MS", "PREEMPTED", "REAPED", "SCHEDULED", "count", "counted"]

EVICTED = "evicted"  #: runs whose model was unloaded under them, because memory was short
PREEMPTED = "preempted"  #: runs that made way for a higher tier
REAPED = "reaped"  #: messages that were taken from workers which had died, or were taken for dead
FENCED = "fenced"  #: runs that a later claim had overtaken: what they still wrote was refused
SCHEDULED = "scheduled"  #: due runs that beat has published
LATE_MS = "scheduled_late_ms"  #: how late those were, all together, by the clock of their beat


def count(app: GaelpApp, what: str, times: int = 1) -> None:
    """So many more; where Redis does not serve us they go uncounted."""
    with suppress(*unavailable):
        app.redis.hincrby(app.keys.counts, what, times)


def counted(app: GaelpApp) -> dict[str, int]:
    """How often each has happened; what never happened is missing. Raises BrokerUnavailable."""
    with worded(app.settings):
        found: Any = app.redis.hgetall(app.keys.counts)
    return {what: int(times) for what, times in found.items()}
