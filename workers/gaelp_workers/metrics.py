"""What this worker tells Prometheus: what became of its runs, and how it stands, on a page of its own.

Celery's signals tell, on the thread of the task that ended. The page has threads of its own, too, and asks
nobody: neither the loop nor Redis can be held up by a scrape, nor hold one up.
"""

import logging
from collections.abc import Callable
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.exceptions import Retry
from celery.states import RETRY

from gaelp_tasks.metrics.series import WORKER
from gaelp_tasks.metrics.worker import Standing, samples
from gaelp_tasks.queues import EMBED
from gaelp_tasks.registry import AGENTS
from gaelp_tasks.tasks.base import ASKED_AGAIN, ModelTask
from gaelp_tasks.tasks.resources import Resources, shared_resources
from gaelp_workers.recording import ended, unread
from gaelp_workers.steps import NodeDuties
from gaelp_workers.transport import Transport

if TYPE_CHECKING:
    from gaelp_tasks.metrics.page import Runs

__all__ = ["Telling"]

logger = logging.getLogger(__name__)

RELEASE = version("gaelp-tasks")


def is_retry(told: Any, retries: int) -> bool:
    """Whether a run that goes back to its queue has spent an attempt: it failed, and did not only wait."""
    return isinstance(told, Retry) and (told.sig.options.get("retries") or 0) > retries


class Listening:
    """Hears what becomes of each run, and counts it."""

    def __init__(self, runs: "Runs") -> None:
        self.moved_at = monotonic()  #: when a run last began or ended
        self._runs = runs

    def connect(self) -> None:
        """Hear Celery from now on."""
        signals.task_prerun.connect(self.on_begin, weak=False)
        signals.task_postrun.connect(self.on_end, weak=False)
        signals.task_revoked.connect(self.on_revoked, weak=False)

    def disconnect(self) -> None:
        """Hear no more."""
        signals.task_prerun.disconnect(self.on_begin)
        signals.task_postrun.disconnect(self.on_end)
        signals.task_revoked.disconnect(self.on_revoked)

    def on_begin(self, sender: Any, **_: Any) -> None:
        """A run begins."""
        if isinstance(sender, ModelTask):
            self.moved_at = monotonic()

    def on_end(self, sender: Any, state: str, retval: Any, **_: Any) -> None:
        """A run has ended; its request is still that of its thread."""
        if not isinstance(sender, ModelTask):
            return
        self.moved_at, request = monotonic(), sender.request
        if request.get(ASKED_AGAIN):  # its answer was counted when it was made
            return
        if state == RETRY and is_retry(retval, request.retries or 0):
            self._runs.retried()
        end = ended(sender.name, request, state, retval, text_bytes=0)
        if end is not None:
            self._runs.ended(end)

    def on_revoked(self, sender: Any, request: Any, expired: bool, **_: Any) -> None:
        """Celery has dropped a message unread; of ours only what came after its `expires`."""
        if expired and isinstance(sender, ModelTask):
            self._runs.ended(unread(sender.name, request, text_bytes=0))


def standing(c: Any, at: Resources, *, began_at: float, moved_at: float) -> Standing:
    """How the worker stands now; times are `monotonic`."""
    now = monotonic()
    heard = [node.meter.heard_at for node in at.nodes if node.meter.heard_at is not None]
    return Standing(
        worker=c.hostname,
        version=RELEASE,
        runs=sum(one not in at.aside for one in at.runs.ids()),
        open=not c.pool.closed,
        wants=c.wants(),
        claim_age_s=max(0.0, now - max(began_at, Transport.polled_at)),
        progress_age_s=max(0.0, now - max([moved_at, *heard])),
        reserve_bytes={node.url: int(at.settings.os_reserve) for node in at.nodes},
    )


class Telling(bootsteps.StartStopStep):
    """Count what becomes of runs and serve the page; nothing at all where GAELP_METRICS_PORT is 0."""

    requires = (NodeDuties,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self.enabled = c.app.settings.metrics_port > 0
        self._end: Callable[[], None] | None = None
        self._listening: Listening | None = None

    def start(self, c: Any) -> None:
        """Begin; after a reconnect it is still there. A port in use costs the page, not the worker."""
        if self._listening is not None:
            return
        from gaelp_tasks.metrics.page import (  # noqa: PLC0415  a worker without a page does not need it
            Collected,
            Runs,
            new_page,
            serve,
        )

        settings = c.app.settings
        page, began_at = new_page(), monotonic()
        listening = self._listening = Listening(Runs(lambda: (EMBED, *AGENTS.names(settings)), page))
        gauges = (series for series in WORKER if series.kind == "gauge")
        Collected(
            gauges,
            lambda: samples(standing(c, shared_resources(), began_at=began_at, moved_at=listening.moved_at)),
            page,
        )
        listening.connect()
        host, port = settings.metrics_listener[0], settings.metrics_port
        try:
            self._end = serve(page, host, port)
        except OSError as error:
            logger.error(  # noqa: TRY400  the sentence says it all
                "No metrics of this worker: %s:%d cannot be listened on (%s); give it another "
                "GAELP_METRICS_PORT.",
                host,
                port,
                error.strerror or error,
            )

    def shutdown(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """End."""
        if self._listening is not None:
            self._listening.disconnect()
        if self._end is not None:
            self._end()
