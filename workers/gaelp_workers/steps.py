"""Our bootsteps in Celery's consumer. They touch private names of celery and kombu; each has a test."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from celery import bootsteps

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.connections import connect, unavailable
from gaelp_tasks.errors import DeadLettered
from gaelp_tasks.runtime import shared_runtime
from gaelp_tasks.tasks.resources import shared_resources
from gaelp_workers.dispatch import Free, free
from gaelp_workers.keeper import Keeper, connection_name
from gaelp_workers.known import KnownQueues
from gaelp_workers.leases import Leases
from gaelp_workers.memory import memory_of
from gaelp_workers.monitor import announce, hear_cancellations, sweep_cancellations
from gaelp_workers.transport import Transport

__all__ = ["Holding", "NodeDuties", "beside"]

logger = logging.getLogger(__name__)

DAY_S = 86_400.0
BEATS = 10  #: renewals per lease
GOODBYE_S = 0.5  #: at most; without it the process often ends first, and its nodes look alive for seconds

TASKS = "celery.worker.consumer.tasks:Tasks"


def stop_run(task_id: str) -> None:
    """Stop a run whose lease has ended."""
    shared_resources().runs.stop(task_id, Reason.LEASE)


def give_up(app: Any, task_id: str, reason: str) -> None:
    """Tell who waits for a task that its message is a dead letter; replayed, it may still end well."""
    with suppress(*unavailable):
        app.backend.mark_as_failure(
            task_id, DeadLettered(f"The message of {task_id} is a dead letter: {reason}.")
        )


@cache
def _errands() -> "SimpleQueue[Callable[[], None]]":
    """What the one thread behind `beside` still has to do."""
    errands: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def serve() -> None:
        while True:
            try:
                errands.get()()
            except Exception:
                logger.exception("A task's end could not be told.")

    threading.Thread(target=serve, name="gaelp-beside", daemon=True).start()
    return errands


def beside(what: Callable[..., None], *given: Any) -> None:
    """Do it soon, on another thread: Celery's backend may wait for Redis; loop and keeper must not."""
    _errands().put(partial(what, *given))


class Holding(bootsteps.StartStopStep):
    """Fetch by claims while a slot is free, and keep the leases of what is held.

    What runs outlives a lost connection under its lease; what was only reserved is given back, for Celery
    forgets it.
    """

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        settings = c.app.settings
        holder = uuid4().hex[:16]
        same_redis = settings.results_url == settings.broker_url
        self._leases = Leases(
            c.app.redis,
            c.app.keys,
            holder=holder,
            ttl_s=settings.lease_ttl_s,
            claims_ttl_s=max(settings.result_ttl_s, settings.stream_ttl_s) + DAY_S,
            poison_deaths=settings.poison_deaths,
            results=c.app.backend.get_key_for_task(".").decode().removesuffix(".") if same_redis else "",
        )
        known = KnownQueues(self._leases, lambda: shared_resources().models)
        self._keeper = Keeper(
            self._leases,
            connect(settings, name=connection_name(holder), answer_s=settings.lease_ttl_s / 5),
            every_s=settings.lease_ttl_s / BEATS,
            on_lost=stop_run,
            on_beat=known.look,
            on_poison=lambda task_id: beside(give_up, c.app, task_id, "it killed the workers that ran it"),
        )
        Transport.leases = self._leases
        Transport.known = known
        Transport.on_refused = partial(beside, give_up, c.app)
        Transport.room = lambda: self.left(c)
        Transport.most_bytes = settings.most_message_bytes

    def left(self, c: Any) -> Free:
        """Slots and seats that nothing held takes; `pool.limit` may move at any time."""
        if c.pool.closed:
            return Free(0, 0, 0)
        slots = shared_resources().slots(c.pool.limit)
        return free(self._leases.kinds, slots=slots, seats=c.pool.seats)

    def start(self, c: Any) -> None:
        """Begin to renew; after a reconnect the keeper is still there."""

        def open_queues() -> list[str]:
            consumer = c.task_consumer  # None while the connection is down
            return [queue.name for queue in consumer.queues] if consumer and self.left(c).seats > 0 else []

        shared_resources().seats.open_queues = open_queues
        shared_resources().lively = lambda: self._keeper.lively
        if not self._keeper.is_alive():
            self._leases.load()
            self._keeper.start()

    def stop(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """The connection is gone, or the worker stops: what does not run yet is for others."""
        with suppress(*unavailable):  # then their leases run out
            self._leases.give_back(*self._leases.idle)

    def shutdown(self, c: Any) -> None:
        """Nothing runs here any more."""
        self.stop(c)
        self._keeper.stop()


class NodeDuties(bootsteps.StartStopStep):
    """What the node does besides running tasks, on the loop of this process."""

    requires = (TASKS,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._duties: Future[None] | None = None
        self._ended = threading.Event()
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        """Begin; after a reconnect they simply go on."""
        if self._duties is None:
            shared_resources().worker = c.hostname
            self._duties = asyncio.run_coroutine_threadsafe(self._serve(c), shared_runtime().loop)

    async def _serve(self, c: Any) -> None:
        at = shared_resources()
        try:
            ends = await asyncio.gather(
                announce(c.hostname, at, lambda: c.pool.limit, memory_of(at.settings), lambda: c.pool.closed),
                hear_cancellations(at),
                sweep_cancellations(at),
                return_exceptions=True,
            )
            for error in filter(None, ends):
                logger.error("A duty of this worker has ended: %s", error)
        finally:
            self._ended.set()

    def shutdown(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """End, once nothing runs here any more, and take back what was announced, if Redis is there."""
        if self._duties is not None:
            self._duties.cancel()
            self._ended.wait(GOODBYE_S)
