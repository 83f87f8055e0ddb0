"""Asking a run to stop, and stopping it: from any thread, any process, with a reason."""

import asyncio
from enum import StrEnum
from types import TracebackType
from typing import Self

from gaelp_tasks.connections import AsyncRedis, SyncRedis
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.keys import Keys

__all__ = ["Cancellation", "Cancelled", "Reason", "Runs", "request_cancel"]


class Reason(StrEnum):
    """Why a run is stopped."""

    USER = "user"  #: cancel, revoke, Flower's Terminate
    DEADLINE = "deadline"  #: deadline_s or soft_time_limit has passed
    TIME_LIMIT = "time_limit"  #: Celery's hard time_limit has passed
    STALL = "stall"  #: no token for too long
    BUDGET = "budget"  #: the money is spent
    EXPIRED = "expired"  #: it waited longer than queue_ttl_s
    EVICTION = "eviction"  #: memory is needed
    PREEMPTION = "preemption"  #: a higher tier needs the slot
    SHUTDOWN = "shutdown"  #: the worker is stopping
    LEASE = "lease"  #: the worker could not renew its lease: another one may run it


class Cancelled(GaelpError):
    """The run was stopped from outside; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"stopped: {reason}")
        self.reason = reason


class Cancellation:
    """One run's stop button; the first reason counts.

    `async with cancellation:` marks what may be stopped: inside it `stop` cancels the coroutine where it
    waits, which closes the model's connection, and Cancelled comes out. Outside it a stop is only remembered,
    so that settling is never torn apart. The button may be pressed before the run begins.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reason: Reason | None = None
        self._loop = loop
        self._task: asyncio.Task[object] | None = None
        self._delivered = False
        self._cancels = 0  #: of the task by others, before it entered

    def stop(self, reason: Reason) -> None:
        """Ask the run to stop; from any thread."""
        self._loop.call_soon_threadsafe(self._stop, reason)

    def check(self) -> None:
        """Stop here if it was asked for; for loops whose awaits might swallow a cancel."""
        if self.reason is not None:
            raise Cancelled(self.reason)

    def _stop(self, reason: Reason) -> None:
        if self.reason is None:
            self.reason = reason
            self._deliver()

    def _deliver(self) -> None:
        if self._task is not None and not self._delivered:
            self._delivered = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        if self.reason is not None:
            raise Cancelled(self.reason)
        self._task = asyncio.current_task()
        self._cancels = self._task.cancelling() if self._task is not None else 0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._delivered or task is None or self.reason is None:
            return
        if task.uncancel() <= self._cancels:  # else somebody cancelled the whole task too
            raise Cancelled(self.reason) from error


class Runs:
    """The runs of this process by invocation id, so that anybody here can stop one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._runs: dict[str, Cancellation] = {}

    def enter(self, invocation_id: str) -> Cancellation:
        """The stop button of this id, made at the first call; `leave` forgets it."""
        return self._runs.setdefault(invocation_id, Cancellation(self._loop))

    def leave(self, invocation_id: str, button: Cancellation | None = None) -> None:
        """The run is over; with its `button` given, a later run of the same id keeps its own."""
        if button is None or self._runs.get(invocation_id) is button:
            self._runs.pop(invocation_id, None)

    def stop(self, invocation_id: str, reason: Reason) -> bool:
        """Stop a run; False when it does not run here."""
        run = self._runs.get(invocation_id)
        if run is not None:
            run.stop(reason)
        return run is not None

    def ids(self) -> tuple[str, ...]:
        """Who runs here now; what makes way for another run has left its slot to that one."""
        return tuple(name for name, run in self._runs.copy().items() if run.reason is not Reason.PREEMPTION)


def request_cancel(redis: SyncRedis, keys: Keys, *invocation_ids: str, ttl_s: float) -> None:
    """Leave a standing request to cancel, and call it out to whoever runs the invocations.

    A queued one ends before it starts; the request is remembered for `ttl_s`. Raises what redis-py raises.
    """
    with redis.pipeline() as pipe:
        for invocation_id in invocation_ids:
            pipe.set(keys.cancel(invocation_id), Reason.USER.value, px=int(ttl_s * 1000))
            pipe.zadd(keys.parked, {invocation_id: 0}, xx=True)  # what waits for its time waits no longer
            pipe.publish(keys.cancellations, invocation_id)
        pipe.execute()


async def listen(redis: AsyncRedis, keys: Keys, runs: Runs) -> None:
    """Stop the runs whose cancelling is called out; returns when the connection breaks."""
    async with redis.pubsub(ignore_subscribe_messages=True) as calls:
        await calls.subscribe(keys.cancellations)
        async for call in calls.listen():
            runs.stop(call["data"], Reason.USER)


async def sweep(redis: AsyncRedis, keys: Keys, runs: Runs) -> None:
    """Stop the runs that somebody asked to cancel while this process could not hear it."""
    ids = runs.ids()
    if ids:
        wishes = await redis.mget([keys.cancel(invocation_id) for invocation_id in ids])
        for invocation_id, wish in zip(ids, wishes, strict=True):
            if wish is not None:
                runs.stop(invocation_id, Reason.USER)
