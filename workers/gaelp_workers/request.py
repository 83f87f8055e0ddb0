"""Celery's request of a task, without prompts in what it shows, and with a terminate that settles."""

from typing import Any

from celery.worker.request import Request as CeleryRequest

__all__ = ["Request"]

#: arguments that may be shown; everything else may hold a prompt
SHOWN = ("agent", "model", "tier", "priority")


class Request(CeleryRequest):
    """One message of ours inside the worker; log, events and `inspect` see a summary of its arguments.

    Plain senders put the arguments' text into the message's headers: it is replaced here, before Celery
    logs or sends anything.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = self._kwargs if isinstance(self._kwargs, dict) else {}
        self._argsrepr = "()"
        # never empty: Celery's error log would put the arguments themselves in its place
        self._kwargsrepr = " ".join(f"{name}={given[name]}"[:100] for name in SHOWN if name in given) or "{}"
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002  Celery's signature
        """What `inspect` tells about it."""
        told = super().info(safe=True)
        told["args"], told["kwargs"] = [], self._kwargsrepr
        return dict(told)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Stop it as `cancel` does: the run settles with its partial text, so nothing is announced here."""
        if self.time_start:
            pool.terminate_job(self.worker_pid, signal)
        else:
            self._terminate_on_ack = pool, signal
