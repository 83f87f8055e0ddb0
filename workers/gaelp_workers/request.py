"""Celery's request of a task of ours: no prompts in what it shows, and every revoke settles."""

import os
from traceback import extract_tb
from typing import Any

from celery.exceptions import Ignore, Retry
from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.request import ExceptionWithTraceback
from celery.worker.request import Request as CeleryRequest

from gaelp_tasks import errors
from gaelp_tasks.attachments import key_of
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.tasks.resources import shared_resources
from gaelp_workers.transport import Transport

__all__ = ["Request"]

#: arguments that may be shown; everything else may hold a prompt
SHOWN = ("agent", "model", "tier", "priority")


def places_of(error: BaseException) -> list[str]:
    """The calls that led to it, without code and messages; of its own frames, for a text can be forged."""
    frames = extract_tb(error.__traceback__)
    return [f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in frames]


def without_text(exception: str) -> str:
    """The repr of an exception as it may be shown: ours are sentences without prompts."""
    name = exception.partition("(")[0]
    return exception if hasattr(errors, name) else f"{name}(...)"


class Request(CeleryRequest):
    """One message of ours inside the worker; log, events and `inspect` see a summary of its arguments.

    Plain senders put the arguments' text into the message's headers: it is replaced here, before Celery
    logs or sends anything.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._places: list[str] = []  # of what it raised
        self._asked_limits: tuple[float | None, float | None] = (None, None)
        self._goes_on = False  # in another message, or another worker
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
        if not self._already_revoked and self.maybe_expire() and super().revoked():
            state.revoked.discard(self.id)  # Celery has put it there; nobody wished to cancel it, and by its
            self.task.key_ends(self.id, self._kwargs)  # idempotency key it may be asked for again
        return bool(self._already_revoked)

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

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """It raised; without billiard's wrapping, which would hide in the event what it was."""
        raised = exc_info.exception
        told = raised.exc if isinstance(raised, ExceptionWithTraceback) else raised
        self._goes_on = isinstance(told, Ignore | Retry)
        if not isinstance(told, Retry):
            exc_info.exception = told
        self._places = places_of(exc_info.exception)
        super().on_failure(exc_info, send_failed_event, return_ok)

    def acknowledge(self) -> None:
        """Off its queue for good, and with it what lies beside it, unless the invocation goes on."""
        if not self._goes_on and (key := key_of(self.task.app.keys, self._request_dict)) is not None:
            Transport.leases.ends_with(self._request_dict["properties"]["delivery_tag"], key)
        super().acknowledge()

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  Celery's signature
        """Tell who watches; of an exception that is not ours the name only, for its text may hold a prompt.

        The caller finds all of it in the result.
        """
        if "exception" in fields:
            fields["exception"] = without_text(str(fields["exception"]))
        if "traceback" in fields:
            fields["traceback"] = "\n".join([*self._places, fields.get("exception", "")])
        super().send_event(type, **fields)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Stop it as `cancel` does: the run settles with its partial text, so nothing is announced here."""
        if self.time_start:
            pool.terminate_job(self.worker_pid, signal)
        else:
            self._terminate_on_ack = pool, signal
