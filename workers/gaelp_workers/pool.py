"""Celery's threads pool with what it lacks: a live limit, terminate, time limits, a drain that ends.

A thread only waits: the task's coroutine runs on the loop of this process, and stopping a task is cancelling
the coroutine, which closes the model's connection even before the first token. An invocation takes one of
`limit` slots; an embedding takes one of `seats`, because embeddings share the calls of their model.
"""

import logging
from asyncio import TimerHandle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from typing import Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as ThreadPool

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.runtime import shared_runtime
from gaelp_tasks.tasks.resources import shared_resources
from gaelp_workers.dispatch import EMBEDS
from gaelp_workers.transport import Transport

__all__ = ["HARD_MAX", "TaskPool"]

logger = logging.getLogger(__name__)

HARD_MAX = 1024  #: slots that can ever be taken; `limit` moves below it
HAND_BACK_S = 5.0  #: after the grace, for stopped runs to settle and give their messages back


class TaskPool(ThreadPool):
    """A threads pool whose `limit` may be moved while it works; running tasks are left alone."""

    limit: int  #: invocations that may run at once; read at each fetch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seats: int = self.app.settings.embed_seats  #: embeddings that may run at once
        self.executor = ThreadPoolExecutor(max_workers=HARD_MAX + self.seats, thread_name_prefix="gaelp-seat")
        self.grace_s = float(self.app.settings.drain_grace_s)
        self._tokens = count(1)
        self._running: dict[int, str] = {}
        self._futures: set[Future[Any]] = set()

    def grow(self, n: int = 1) -> None:
        """Allow `n` more invocations at once."""
        self.limit = min(HARD_MAX, self.limit + n)

    def shrink(self, n: int = 1) -> None:
        """Allow `n` fewer; 0 takes nothing new."""
        self.limit = max(0, self.limit - n)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        *,
        correlation_id: str = "",
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> ApplyResult:
        """Run a task in a thread, under its limits; `token` becomes Celery's worker_pid of it."""
        runs, seats = shared_resources().runs, shared_resources().seats
        runs.enter(correlation_id)
        Transport.leases.begin(correlation_id)
        if args[:1] == (EMBEDS,):  # Celery's request gives the task's name first
            seats.enter(correlation_id)
        token = next(self._tokens)
        self._running[token] = correlation_id
        alarms = [
            self._alarm(after_s, correlation_id, reason)
            for after_s, reason in ((soft_timeout, Reason.DEADLINE), (timeout, Reason.TIME_LIMIT))
            if after_s
        ]

        def done(future: Future[Any]) -> None:
            self._running.pop(token, None)
            self._futures.discard(future)
            seats.leave(correlation_id)
            runs.leave(correlation_id)
            if not future.cancelled() and future.exception() is not None:
                logger.error("Celery could not run %s.", correlation_id, exc_info=future.exception())
                Transport.leases.spoil(correlation_id)
            for alarm in alarms:
                shared_runtime().loop.call_soon_threadsafe(alarm.cancel)

        future = self.executor.submit(
            apply_target, target, args, kwargs, callback, accept_callback, pid=token
        )
        self._futures.add(future)
        future.add_done_callback(done)
        return ApplyResult(future)

    def _alarm(self, after_s: float, invocation_id: str, reason: Reason) -> TimerHandle:
        async def set_alarm() -> TimerHandle:
            at = shared_resources()
            return shared_runtime().loop.call_later(after_s, at.runs.stop, invocation_id, reason)

        return shared_runtime().run(set_alarm())

    def terminate_job(self, pid: int, signal: Any = None) -> None:  # noqa: ARG002  Celery's signature
        """Stop a running task, as `cancel` does; it settles with its partial text."""
        invocation_id = self._running.get(pid)
        if invocation_id is not None:
            shared_resources().runs.stop(invocation_id, Reason.USER)

    def on_stop(self) -> None:
        """Drain: running tasks may end within the grace, the rest is stopped and given back unharmed."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        _, late = wait(tuple(self._futures), timeout=self.grace_s)
        if late:
            logger.warning("Giving back %d runs that did not end within %g s.", len(late), self.grace_s)
            runs = shared_resources().runs
            for invocation_id in tuple(self._running.values()):
                runs.stop(invocation_id, Reason.SHUTDOWN)
            wait(late, timeout=HAND_BACK_S)

    def on_terminate(self) -> None:
        """Stop at once: everything is given back."""
        self.grace_s = 0.0
        self.on_stop()

    def _get_info(self) -> dict[str, Any]:
        embedding = len(shared_resources().seats.taken)
        return dict(super()._get_info()) | {
            "running": len(self._running) - embedding,
            "embedding": embedding,
            "seats": self.seats,
            "hard-max": HARD_MAX,
        }
