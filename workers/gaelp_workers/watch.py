"""Looks at the worker from outside, on a connection of its own: whether it hears Redis, and what is wished.

A living process is no proof: a loop may hang, or a connection may be dead without an error. So this asks
whether claims are answered while there is room for work and Redis answers somebody else.
"""

import logging
import threading
from collections.abc import Callable
from enum import Enum
from time import monotonic

from gaelp_tasks.connections import SyncRedis, unavailable
from gaelp_tasks.cordons import Wish

__all__ = ["ANSWER_S", "Hearing", "Verdict", "Watch"]

logger = logging.getLogger(__name__)

ANSWER_S = 0.5  #: the watch waits for Redis no longer
LEAST_S = 0.05  #: between two looks
END = 6  #: times as long as it takes to connect anew, and the worker ends


class Verdict(Enum):
    """What is to be done about how the worker hears."""

    WELL = "well"
    RECONNECT = "reconnect"  #: drop the consumer's connections
    INTERRUPT = "interrupt"  #: that did not help: throw an error into its loop
    END = "end"  #: nor did that
    LOST = "lost"  #: Redis has been away for too long


class Hearing:
    """How long ago Redis was heard, and what that means. Pure: times come from the caller, monotonic seconds.

    Silence counts only while it was watched: after a pause of the whole process everything begins anew.
    """

    def __init__(self, now: float, *, every_s: float, deaf_s: float, lost_s: float) -> None:
        self._gap_s = 4 * (every_s + ANSWER_S)
        self._deaf_s = deaf_s
        self._lost_s = lost_s
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._looked_at = self._answered_at = self._heard_at = now
        self._steps = 0  #: taken against this deafness

    def look(self, now: float, *, answered: bool, wants: bool, polled_at: float) -> Verdict:
        """Judge one look.

        `answered`: Redis answered the watch. `wants`: claims should be under way. `polled_at`: when the
        last one was answered.
        """
        if now - self._looked_at > self._gap_s:
            self._begin(now)
        self._looked_at = now
        if not answered:
            self._heard(now)  # it is Redis that is away
            self._answered_at = max(self._answered_at, polled_at)  # or only slow
            lost = 0 < self._lost_s < now - self._answered_at
            return Verdict.LOST if lost else Verdict.WELL
        self._answered_at = now
        if not wants:
            self._heard(now)
        elif polled_at > self._heard_at:
            self._heard(polled_at)
        silent = (now - self._heard_at) / self._deaf_s
        for step, (times, verdict) in enumerate(STEPS, start=1):
            if silent > times and self._steps < step:
                self._steps = step
                return verdict
        return Verdict.WELL

    def _heard(self, at: float) -> None:
        self._heard_at = at
        self._steps = 0


#: how many times `deaf_s` it takes for each
STEPS = ((1, Verdict.RECONNECT), (2, Verdict.INTERRUPT), (END, Verdict.END))


class Watch(threading.Thread):
    """Looks every `every_s`: acts on the verdict, and tells what is wished of this worker.

    Before the first look nothing is known, so a worker must take nothing until `on_wish` was called.
    """

    def __init__(
        self,
        redis: SyncRedis,
        key: str,
        *,
        hearing: Hearing,
        every_s: float,
        wants: Callable[[], bool],
        polled_at: Callable[[], float],
        on_wish: Callable[[Wish | None], None],
        on_verdict: Callable[[Verdict], None],
    ) -> None:
        super().__init__(name="gaelp-watch", daemon=True)
        self._redis = redis
        self._key = key
        self._every_s = every_s
        self._wants = wants
        self._polled_at = polled_at
        self._on_wish = on_wish
        self._on_verdict = on_verdict
        self._hearing = hearing
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while True:
            began = monotonic()
            try:
                self.look()
            except Exception:
                logger.exception("The watch could not look; it tries again.")
            if self._over.wait(max(LEAST_S, self._every_s - (monotonic() - began))):
                return

    def stop(self) -> None:
        """End."""
        self._over.set()

    def look(self) -> None:
        """One look."""
        answered = True
        try:
            told = self._redis.get(self._key)
            # whatever else stands there, somebody wanted something: nothing new is the careful reading
            self._on_wish(Wish(str(told)) if told in list(Wish) else Wish.CORDON if told else None)
        except unavailable:
            answered = False
        verdict = self._hearing.look(
            monotonic(), answered=answered, wants=self._wants(), polled_at=self._polled_at()
        )
        if verdict is not Verdict.WELL:
            self._on_verdict(verdict)
