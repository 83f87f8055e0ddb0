"""The step that looks at what Redis does when it is full."""

import logging
from typing import Any

from celery import bootsteps

from gaelp_tasks.connections import connect, eviction_policy, unavailable, unsafe

__all__ = ["RedisPolicy"]

logger = logging.getLogger(__name__)

LOOK_S = 60.0  #: somebody may change the policy while we run
ANSWER_S = 2.0  #: the event loop waits for it

CONNECTION = "celery.worker.consumer.connection:Connection"


class RedisPolicy(bootsteps.StartStopStep):
    """Refuse to start on a Redis that evicts: it would throw accepted work away without a word.

    Once the worker runs it only warns, again and again: it holds work that should end.
    """

    requires = (CONNECTION,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._runs = False
        self._timer: Any = None

    def start(self, c: Any) -> None:
        """Look, at the start and after each reconnect: a replica may have another policy than its master."""
        trouble = self.look(c)
        if trouble and not self._runs:
            logger.critical("This worker does not start: %s", trouble)
            raise SystemExit(1)
        self._runs = True
        self._timer = c.timer.call_repeatedly(LOOK_S, self.look, (c,))

    def stop(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self, c: Any) -> str:
        """What is wrong, '' for nothing, or where Redis does not tell."""
        try:
            with connect(c.app.settings, answer_s=ANSWER_S) as redis:
                trouble = unsafe(c.app.settings, eviction_policy(redis))
        except unavailable as error:
            logger.warning("Redis does not tell what it does when it is full: %s", error)
            return ""
        if trouble and self._runs:
            logger.error("%s", trouble)
        return trouble
