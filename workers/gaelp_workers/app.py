"""Composition root of the worker: Celery's consumer plus the visible list STEPS."""

import gc
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown

from gaelp_tasks.connections import connect, unavailable
from gaelp_tasks.cordons import Wish
from gaelp_tasks.footprints import unusual
from gaelp_tasks.settings import masked
from gaelp_workers.control import NO_AUTOSCALE, Recalls
from gaelp_workers.metrics import Telling
from gaelp_workers.names import warn_of_names
from gaelp_workers.naming import Naming
from gaelp_workers.owner import Owner
from gaelp_workers.recording import Recording
from gaelp_workers.redis_policy import RedisPolicy
from gaelp_workers.refusals import Refusals, give_back_quietly
from gaelp_workers.sentinel import ways_in
from gaelp_workers.steps import Holding, NodeDuties
from gaelp_workers.tracing import Tracing
from gaelp_workers.transport import Transport
from gaelp_workers.versions import put_off, too_new
from gaelp_workers.watch import ANSWER_S, END, Hearing, Verdict, Watch

__all__ = ["STEPS", "Consumer"]

logger = logging.getLogger(__name__)

AGAIN_S = 0.5  #: between two tries to connect, however long Redis has been away
TELL_EVERY = 60  #: tries, of which one is logged

#: What our worker does beside Celery's own steps.
STEPS = (
    RedisPolicy,  # refuse a Redis that would throw accepted work away
    Holding,  # fetch only while a slot is free, and keep what is held from being given to others
    NodeDuties,  # announce the node, hear cancellations
    Recalls,  # end what waits for its time and was cancelled
    Telling,  # tell Prometheus, where a port is named
    Recording,  # tell the history what has ended
    Naming,  # name the run in what is logged inside it
    Tracing,  # tell OpenTelemetry, where GAELP_TRACES is on
)


class Consumer(Refusals, CeleryConsumer):
    """Celery's consumer with our steps; named by `worker_consumer` in gaelp_tasks.celery_app."""

    def __init__(self, *args: Any, controller: Any = None, **kwargs: Any) -> None:
        if getattr(controller, "autoscale", None):  # it would stay at its minimum for ever and not say so
            raise SystemExit(NO_AUTOSCALE)
        give_back_quietly()
        super().__init__(*args, controller=controller, **kwargs)
        if self.app.conf.worker_disable_prefetch:  # Celery's gate would take the place of ours
            logger.warning("worker_disable_prefetch is ignored: this worker never takes what it cannot run.")
            self.app.conf.worker_disable_prefetch = False
        settings = self.app.settings
        warn_of_names(settings)
        if warning := unusual(settings.safety_factor):
            logger.warning(warning)
        self._told_cordoned = False
        self.owners: dict[str, Owner] = {}  #: of this worker's nodes, by address; the steps fill it
        every_s = min(1.0, settings.poll_interval_s)
        self.watch = Watch(
            connect(settings, answer_s=ANSWER_S),
            self.app.keys.cordon(self.hostname),
            hearing=Hearing(
                monotonic(), every_s=every_s, deaf_s=settings.deaf_after_s, lost_s=settings.broker_lost_s
            ),
            every_s=every_s,
            wants=self.wants,
            polled_at=lambda: Transport.polled_at,
            on_wish=self.obey,
            on_verdict=self.mend,
        )

    def start(self) -> None:
        """Celery's start, watched from outside."""
        if not self.watch.is_alive():
            self.watch.start()
        gc.collect()
        gc.freeze()  # what the imports brought stays: to look through it all stops every stream for 50 ms
        super().start()

    def shutdown(self) -> None:
        """Celery's shutdown, after which there is nothing to watch."""
        self.watch.stop()
        super().shutdown()

    # --- what the watch sees and does, on its own thread ---

    def wants(self) -> bool:
        """Whether claims should be under way; they also sort inboxes while there is no room."""
        consumer = self.task_consumer
        return consumer is None or (bool(consumer.queues) and not Transport.leases.alone)

    def obey(self, wish: Wish | None) -> None:
        """Close or open the worker as somebody wishes."""
        cordoned = wish is not None
        if cordoned != self._told_cordoned:
            logger.warning("Cordoned: nothing new is taken." if cordoned else "Resumed: work is taken again.")
        self.pool.cordoned = self._told_cordoned = cordoned
        if wish is Wish.HAND_BACK:
            self.pool.hand_back()

    def mend(self, verdict: Verdict) -> None:
        """Do something about a worker that hears nothing."""
        settings = self.app.settings
        match verdict:
            case Verdict.RECONNECT:
                logger.error("No claim is answered while Redis is there: connecting anew.")
                self.drop_connection()
            case Verdict.INTERRUPT:
                self.interrupt()
                self.drop_connection()
            case Verdict.END:
                silent_s = END * settings.deaf_after_s
                why = f"No claim was answered for {silent_s:g} s while Redis was there: this worker ends"
                self.pool.drain.ask(why, at_once=True, code=1)
            case Verdict.LOST:
                why = (
                    f"Redis at {masked(settings.broker_url)} has not answered for "
                    f"{settings.broker_lost_s:g} s (GAELP_BROKER_LOST_S): this worker ends, for its "
                    "supervisor to start it anew"
                )
                self.pool.drain.ask(why, at_once=True, code=1)

    def drop_connection(self) -> None:
        """Break the sockets on which the consumer waits; it then connects anew by itself."""
        connection = self.connection
        with suppress(AttributeError, RuntimeError):  # they change under our hands while it connects
            for line in tuple(connection.transport.cycle._chan_to_sock.values()):  # noqa: SLF001  kombu
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)

    def interrupt(self) -> None:
        """Have the loop raise what a broken connection raises, unless it has a new one by then."""
        broken = self.connection

        def break_off() -> None:
            if self.connection is broken:
                raise ConnectionResetError("No claim was answered.")

        self.hub.call_soon(break_off)

    # --- Celery's own, changed ---

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Celery's connection for consuming, with our transport."""
        way_in = ways_in(self.app.settings.broker_url)
        connection = self.app.connection_for_read(heartbeat=heartbeat, **way_in)
        return self.ensure_connected(connection)

    def ensure_connected(self, connection: Any) -> Any:
        """Try for ever, twice a second; Celery's own pauses grow to half a minute and end after a hundred."""
        tries = 0

        def tell(error: Exception, _: float) -> None:
            nonlocal tries
            if tries % TELL_EVERY == 0:
                logger.error(
                    "Cannot connect to %s (%s); trying again all the time.", connection.as_uri(), error
                )
            tries += 1

        connection.ensure_connection(
            tell, None, interval_start=AGAIN_S, interval_step=0, interval_max=AGAIN_S, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        return connection

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """On the loop, as Celery does; while it stops at once, for the loop may be gone before its turn."""
        if not self.pool.drain.begun:
            return super().call_soon_ack(p, *args, **kwargs)
        return partial(p, *args, **kwargs)()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's handler of messages, which does not see those of a later release."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            if not too_new(message.headers):
                handle(message)
                return
            try:
                put_off(self.app, message)
            except unavailable:
                message.reject(requeue=True)

        return on_message

    class Blueprint(CeleryConsumer.Blueprint):
        """Celery's blueprint with our steps."""

        default_steps = (*CeleryConsumer.Blueprint.default_steps, *STEPS)
