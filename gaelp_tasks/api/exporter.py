"""What this process tells Prometheus: its requests, the tables, and the cluster where nobody else does."""

import asyncio
import logging
from collections.abc import Callable
from importlib.metadata import version
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gaelp_tasks.api.watching.watchers import Watchers
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.figures import plane_now
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.metrics import cluster, control_plane
from gaelp_tasks.metrics.cluster import Latest
from gaelp_tasks.metrics.control_plane import Plane
from gaelp_tasks.metrics.page import Collected, Requests, new_page, serve, text
from gaelp_tasks.metrics.series import CLUSTER, CONTROL_PLANE, HTTP, MOST_MODELS, Names, Sample
from gaelp_tasks.settings import Settings
from gaelp_tasks.survey import Survey

if TYPE_CHECKING:
    from gaelp_tasks.api.state import State  # which holds one of these

__all__ = ["Exporter", "listen"]

logger = logging.getLogger(__name__)

ANSWER_S = 2.0  #: each of the few questions to Redis
FRESH_S = 5.0  #: a look into SQL serves everybody who asks within this
WAIT_S = 3.0  #: for it


class Exporter:
    """The page of one process. Made and asked on its event loop; the listener's threads ask through it."""

    def __init__(self, settings: Settings, db: Database, app: GaelpApp, watchers: Watchers) -> None:
        self._settings, self._db, self._watchers = settings, db, watchers
        self._loop = asyncio.get_running_loop()
        self._looking = asyncio.Lock()
        self._plane: Plane | None = None
        self._looked_at = float("-inf")
        self.page = new_page()
        self.requests = Requests(self.page)
        own = [series for series in HTTP if series.name in {"gaelp_watchers", "gaelp_api_info"}]
        Collected(own, self._own, self.page)
        Collected(CONTROL_PLANE, self._tables, self.page)
        if settings.api_tells_cluster:
            redis = connect(settings, answer_s=ANSWER_S)
            asking: Any = SimpleNamespace(settings=settings, keys=app.keys, redis=redis)
            latest, models = Latest(Survey(asking).take), Names(MOST_MODELS)
            Collected(CLUSTER, lambda: cluster.samples(latest(), models), self.page)

    async def told(self) -> str:
        """The page as Prometheus reads it."""
        return await asyncio.to_thread(text, self.page)

    def serve(self) -> Callable[[], None] | None:
        """Serve the page at GAELP_METRICS_ADDRESS; what comes back ends that. None where that is in use."""
        host, port = self._settings.metrics_listener
        try:
            return serve(self.page, host, port)
        except OSError as error:
            logger.warning(
                "No metrics at %s (%s): they are at /metrics for who is signed in; set GAELP_METRICS_ADDRESS "
                "to a free one, and GAELP_API_TELLS_CLUSTER=false where `gaelp metrics` runs.",
                self._settings.metrics_address,
                error.strerror or error,
            )
            return None

    def _own(self) -> list[Sample]:
        return [
            Sample("gaelp_watchers", (), len(self._watchers.places)),
            Sample("gaelp_api_info", (version("gaelp-tasks"),), 1),
        ]

    def _tables(self) -> list[Sample]:
        """Asked on a thread; the look is the loop's."""
        asked = asyncio.run_coroutine_threadsafe(self._look(), self._loop)
        try:
            found = asked.result(WAIT_S)
        except TimeoutError:
            asked.cancel()
            found = None
        return list(control_plane.samples(found))

    async def _look(self) -> Plane | None:
        async with self._looking:
            if monotonic() - self._looked_at >= FRESH_S:
                try:
                    self._plane = await plane_now(self._db)
                except DatabaseUnavailable:
                    self._plane = None
                self._looked_at = monotonic()
            return self._plane


async def listen(at: "State") -> None:
    """Work of the process: the page on a listener of its own, without a login."""
    end = at.exporter.serve()
    try:
        await asyncio.Event().wait()
    finally:
        if end is not None:
            await asyncio.to_thread(end)
