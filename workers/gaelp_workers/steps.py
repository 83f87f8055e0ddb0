"""Our bootsteps in Celery's consumer. They touch private names of celery and kombu; each has a test."""

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from celery import bootsteps
from celery.worker import state

from gaelp_tasks.runtime import shared_runtime
from gaelp_tasks.tasks.resources import shared_resources
from gaelp_workers.dispatch import Free, free
from gaelp_workers.memory import host_memory
from gaelp_workers.monitor import announce, hear_cancellations, sweep_cancellations

__all__ = ["Gate", "Holding", "NodeDuties"]

TASKS = "celery.worker.consumer.tasks:Tasks"


def held() -> list[str]:
    """The names of the tasks that this worker runs or is about to run; what waits for its time is not."""
    while True:
        try:
            return [request.name for request in state.reserved_requests]
        except RuntimeError:  # a run ended in its own thread meanwhile
            continue


class Gate(bootsteps.StartStopStep):
    """Fetch only while a slot and a seat are free; `pool.limit` is read at each fetch, so it may move.

    Celery's own gate (worker_disable_prefetch) pauses the socket while a BRPOP is under way: a message that
    arrives then waits in the buffer, seen by nobody, and is lost with the worker. An outstanding BRPOP is
    therefore always read.
    """

    requires = (TASKS,)

    def start(self, c: Any) -> None:
        """Replace the channel's own answer; a reconnect makes a new channel and starts the step again."""
        channel = c.task_consumer.channel
        at = shared_resources()

        def left() -> Free:
            return free(held(), slots=at.slots(c.pool.limit), seats=c.pool.seats)

        def can_consume() -> bool:
            return bool(getattr(channel, "_in_poll", None)) or left().for_any

        def open_queues() -> list[str]:
            consumer = c.task_consumer  # None while the connection is down
            return [queue.name for queue in consumer.queues] if consumer and left().slots > 0 else []

        channel.qos.can_consume = can_consume
        at.seats.open_queues = open_queues


class Holding(bootsteps.StartStopStep):
    """Keep the messages that this worker holds young, however long they run.

    kombu gives a message back to its queue when nobody has touched it for `visibility_timeout`, which must be
    short to notice a dead worker and would otherwise re-run every task that is longer.
    """

    requires = (TASKS,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._timer: Any = None
        super().__init__(c, **kwargs)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Touch three times per visibility timeout."""
        if self._timer is not None:
            self._timer.cancel()
        every_s = c.app.settings.visibility_timeout_s / 3
        self._timer = hub.call_repeatedly(every_s, self.touch, c)

    def touch(self, c: Any) -> None:
        """Renew what is running, reserved or waiting for its time."""
        channel = c.task_consumer.channel
        held = [tag for tag in tuple(channel.qos._delivered) if tag not in channel.qos._dirty]  # noqa: SLF001  kombu keeps no public list
        if held:
            with channel.conn_or_acquire() as redis:
                redis.zadd(channel.unacked_index_key, dict.fromkeys(held, time.time()), xx=True)


class NodeDuties(bootsteps.StartStopStep):
    """What the node does besides running tasks, on the loop of this process."""

    requires = (TASKS,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._duties: list[Future[None]] = []
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        """Begin; after a reconnect they simply go on."""
        if self._duties:
            return
        at = shared_resources()
        at.worker = c.hostname
        loop = shared_runtime().loop
        self._duties = [
            asyncio.run_coroutine_threadsafe(duty, loop)
            for duty in (
                announce(c.hostname, at, lambda: c.pool.limit, host_memory),
                hear_cancellations(at),
                sweep_cancellations(at),
            )
        ]

    def shutdown(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """End, once nothing runs here any more."""
        for duty in self._duties:
            duty.cancel()
