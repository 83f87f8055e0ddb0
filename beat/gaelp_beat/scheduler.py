"""Celery's beat scheduler over the static table and the app's own `beat_schedule`."""

import logging

from celery.beat import Scheduler

from gaelp_beat.schedule import STATIC

__all__ = ["StaticScheduler"]

logger = logging.getLogger(__name__)


class StaticScheduler(Scheduler):
    """Keeps its entries in memory and writes no file; every start counts intervals anew."""

    def setup_schedule(self) -> None:
        """Take the static table, then the app's entries, which may replace ours by name."""
        self.merge_inplace({**STATIC, **self.app.conf.beat_schedule})
        self.install_default_entries(self.schedule)
        logger.info("Schedule: %s.", ", ".join(sorted(self.schedule)))
