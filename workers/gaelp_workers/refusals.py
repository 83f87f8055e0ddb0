"""What becomes of a message that cannot be run, or not now, and what is said of it.

What Celery's consumer cannot run is kept, with its reason, and never shown; Celery's own would acknowledge
what it cannot decode, so that it is gone, and write bodies into the log.
"""

import logging
import sys
from functools import partial
from typing import Any

from celery.app import trace
from celery.exceptions import Ignore, NotRegistered, Reject
from celery.utils.objects import Bunch

from gaelp_tasks.threads import beside
from gaelp_workers.transport import Transport

__all__ = ["Brief", "Refusals", "give_back_quietly"]

logger = logging.getLogger(__name__)


class Brief(trace.ExceptionInfo):
    """Celery's, without copies of the frames where a task has only given its message back.

    They take milliseconds, in which a higher tier waits for the slot.
    """

    def __init__(self, exc_info: Any = None, internal: bool = False) -> None:
        raised: Any = exc_info or sys.exc_info()
        if isinstance(raised[1], Reject | Ignore):
            self.type: Any = raised[0]
            self.exception: Any = raised[1]
            self.tb, self.traceback, self.internal = None, "", internal
        else:
            super().__init__(raised, internal)


def give_back_quietly() -> None:
    """Have Celery say that a message went back to its queue in one plain line: that is no trouble here."""
    trace.ExceptionInfo = Brief
    trace.log_policy_reject = trace.log_policy_reject._replace(severity=logging.INFO, traceback=0)


class Refusals:
    """For Celery's consumer, before it in the order of classes."""

    app: Any

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  Celery's signature
        """Nobody here has registered it: its caller is told, and it is kept for a worker that has."""
        task_id, name = message.headers["id"], message.headers["task"]
        _keep(message, "unknown task")
        request = Bunch(
            name=name,
            chord=None,
            root_id=message.headers.get("root_id"),
            correlation_id=message.properties.get("correlation_id"),
            reply_to=message.properties.get("reply_to"),
            errbacks=None,
        )
        beside(partial(self.app.backend.mark_as_failure, task_id, NotRegistered(name), request=request))

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002  Celery's signature
        """It names no task."""
        _keep(message, "not a Celery message")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  Celery's signature
        """Celery cannot make a request of it."""
        _keep(message, f"malformed ({type(exc).__name__})")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Its body cannot be read."""
        _keep(message, f"malformed body ({type(exc).__name__})")


def _keep(message: Any, reason: str) -> None:
    logger.error("A message is kept among the dead letters: %s (gaelp dlq list).", reason)
    Transport.leases.bury(message.delivery_tag, reason)
    message.reject()
