"""Celery's request of a task of ours: no prompts in what it shows, and every revoke settles."""

import os
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.request import Request as CeleryRequest

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.tasks.resources import shared_resources

__all__ = ["Request"]

#: arguments that may be shown; everything else may hold a prompt
SHOWN = ("agent", "model", "tier", "priority")


class Request(CeleryRequest):
    """One message of ours inside the worker; log, events and `inspect` see a summary of its arguments.

    Plain senders put the arguments' text into the message's headers: it is replaced here, before Celery
    logs or sends anything.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._asked_limits: tuple[float | None, float | None] = (None, None)
        super().__init__(*args, **kwargs)
        given = self._kwargs if isinstance(self._kwargs, dict) else {}
        self._argsrepr = "()"
        # never empty: Celery's error log would put the arguments themselves in its place
        self._kwargsrepr = " ".join(f"{name}={given[name]}"[:100] for name in SHOWN if name in given) or "{}"
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    @property
    def time_limits(self) -> tuple[float | None, float | None]:
        """Hard and soft limit, seconds; Celery reads those of `control time_limit` only when it starts."""
        hard, soft = self._asked_limits
        return hard or self.task.time_limit, soft or self.task.soft_time_limit

    @time_limits.setter
    def time_limits(self, asked: tuple[float | None, float | None]) -> None:
        self._asked_limits = asked

    @property
    def recalled(self) -> bool:
        """Whether this worker was told to revoke it, by its id or by a stamp."""
        return self.id in state.revoked or any(
            {*(maybe_list(stamp) or ())} & {*(maybe_list(state.revoked_stamps.get(name)) or ())}
            for name, stamp in self.stamps.items()
        )

    def revoked(self) -> bool:
        """Discard only what has expired; what was revoked runs, is stopped before it begins, and settles."""
        return bool(self._already_revoked or (self.maybe_expire() and super().revoked()))

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """A seat was found, the run comes next in this thread."""
        super().on_accepted(pid, time_accepted)
        if self.recalled:
            shared_resources().runs.stop(self.id, Reason.USER)

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002  Celery's signature
        """What `inspect` tells about it."""
        told = super().info(safe=True)
        told["args"], told["kwargs"] = [], self._kwargsrepr
        told["worker_pid"] = os.getpid() if self.worker_pid else None  # ours is the number of a seat
        return dict(told)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Stop it as `cancel` does: the run settles with its partial text, so nothing is announced here."""
        if self.time_start:
            pool.terminate_job(self.worker_pid, signal)
        else:
            self._terminate_on_ack = pool, signal
