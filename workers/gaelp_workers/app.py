"""Composition root of the worker: Celery's consumer plus the visible list STEPS."""

from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

from gaelp_workers.control import NO_AUTOSCALE, Recalls
from gaelp_workers.names import warn_of_names
from gaelp_workers.steps import Holding, NodeDuties
from gaelp_workers.transport import SCHEME

__all__ = ["STEPS", "Consumer"]

#: What our worker does beside Celery's own steps.
STEPS = (
    Holding,  # fetch only while a slot is free, and keep what is held from being given to others
    NodeDuties,  # announce the node, hear cancellations
    Recalls,  # end what waits for its time and was cancelled
)


class Consumer(CeleryConsumer):
    """Celery's consumer with our steps; named by `worker_consumer` in gaelp_tasks.celery_app."""

    def __init__(self, *args: Any, controller: Any = None, **kwargs: Any) -> None:
        if getattr(controller, "autoscale", None):  # it would stay at its minimum for ever and not say so
            raise SystemExit(NO_AUTOSCALE)
        super().__init__(*args, controller=controller, **kwargs)
        warn_of_names(self.app.settings)

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Celery's connection for consuming, with our transport."""
        connection = self.app.connection_for_read(heartbeat=heartbeat, transport=SCHEME)
        return self.ensure_connected(connection)

    class Blueprint(CeleryConsumer.Blueprint):
        """Celery's blueprint with our steps."""

        default_steps = (*CeleryConsumer.Blueprint.default_steps, *STEPS)
