"""Celery's threads pool with what it lacks: a live limit, terminate, time limits, a drain that ends.

A thread only waits: the task's coroutine runs on the loop of this process, and stopping a task is cancelling
the coroutine, which closes the model's connection even before the first token. An invocation takes one of
`limit` slots; an embedding takes one of `seats`, because embeddings share the calls of their model.
"""

import logging
import threading
from asyncio import TimerHandle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from time import sleep
from typing import Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as ThreadPool

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.connections import unavailable
from gaelp_tasks.runtime import shared_runtime
from gaelp_tasks.tasks.resources import shared_resources
from gaelp_workers.dispatch import EMBEDS, Kind
from gaelp_workers.draining import Drain
from gaelp_workers.transport import Transport

__all__ = ["HARD_MAX", "TaskPool"]

logger = logging.getLogger(__name__)

HARD_MAX = 1024  #: slots that can ever be taken; `limit` moves below it


class TaskPool(ThreadPool):
    """A threads pool whose `limit` may be moved while it works; running tasks are left alone."""

    limit: int  #: invocations that may run at once; read at each fetch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seats: int = self.app.settings.embed_seats  #: embeddings that may run at once
        self.executor = ThreadPoolExecutor(max_workers=HARD_MAX + self.seats, thread_name_prefix="gaelp-seat")
        self.cordoned = True  #: until the watch has looked whether somebody wants it so
        self._tokens = count(1)
        self._running: dict[int, str] = {}
        self._futures: set[Future[Any]] = set()

    def on_start(self) -> None:
        """Be ready to end from now on; Celery's own handlers of signals are set by now."""
        self.drain = Drain(
            grace_s=float(self.app.settings.drain_grace_s),
            running=lambda: tuple(self._futures),
            ids=lambda: set(self._running.copy().values()),
            stop_runs=self.hand_back,
            owns_process=threading.current_thread() is threading.main_thread(),
            worker=str(self.options["initargs"][1]),
        )
        self.drain.start()

    @property
    def closed(self) -> str:
        """Why nothing new is taken: 'stopping' or 'cordoned'; '' where it is."""
        if self.drain.begun:
            return "stopping"
        return "cordoned" if self.cordoned else ""

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
        if self.drain.begun:  # it was claimed in the moment before
            self._refuse(correlation_id)
            return ApplyResult(Future())
        at = shared_resources()
        runs, seats = at.runs, at.seats
        button = runs.enter(correlation_id)
        if {Kind.ERRAND, Kind.JOB} & Transport.leases.begin(correlation_id):
            at.aside.add(correlation_id)
        embeds = args[:1] == (EMBEDS,)  # Celery's request gives the task's name first
        if embeds:
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
            at.aside.discard(correlation_id)
            runs.leave(correlation_id, button)
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
        if not embeds:  # those come in swarms, and share calls the better the more of them have come
            sleep(0)  # the interpreter is the thread's now, not only at this thread's next call of the system
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

    def hand_back(self) -> None:
        """Stop what runs; it keeps its text so far and goes back to its queue, no attempt is spent.

        Tasks that call no model cannot be stopped: they run on.
        """
        runs = shared_resources().runs
        for invocation_id in tuple(self._running.copy().values()):
            runs.stop(invocation_id, Reason.SHUTDOWN)

    def _refuse(self, task_id: str) -> None:
        leases = Transport.leases
        with suppress(*unavailable):  # then its lease runs out
            leases.give_back(*(tag for tag, task in leases.held.items() if task.id == task_id))

    def on_stop(self) -> None:
        """Celery ends: after a drain there is nothing left to do, else it is done now."""
        self._end(at_once=False)

    def on_terminate(self) -> None:
        """Stop at once: everything is given back."""
        self._end(at_once=True)

    def _end(self, *, at_once: bool) -> None:
        if at_once or not self.drain.begun:
            self.drain.ask("Celery stops", at_once=at_once, code=1)
        self.drain.over.wait()
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _get_info(self) -> dict[str, Any]:
        embedding = len(shared_resources().seats.taken)
        return dict(super()._get_info()) | {
            "running": len(self._running) - embedding - len(shared_resources().aside),
            "embedding": embedding,
            "seats": self.seats,
            "hard-max": HARD_MAX,
        }
