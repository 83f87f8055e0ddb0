"""Who conducts a batch in this process: few at once, and in turns where more want to."""

import threading
from collections.abc import Callable
from math import inf
from time import monotonic

__all__ = ["Rota"]


class Rota:
    """At most `most` at once, so that other errands of the worker are not kept waiting.

    Where others have asked lately, the one that has been at it longest makes way, after `turn_s` at the
    soonest. Safe to use from any thread.
    """

    def __init__(self, *, most: int = 3, turn_s: float = 10.0, tick: Callable[[], float] = monotonic) -> None:
        self._most, self._turn_s, self._tick = most, turn_s, tick
        self._since: dict[str, float] = {}  # by name, the one that has been at it longest first
        self._asked_at = -inf
        self._lock = threading.Lock()

    def join(self, name: str) -> bool:
        """Whether there is a place; else somebody makes way soon."""
        with self._lock:
            if len(self._since) >= self._most:
                self._asked_at = self._tick()
                return False
            self._since[name] = self._tick()
            return True

    def leave(self, name: str) -> None:
        """Its place is free."""
        with self._lock:
            self._since.pop(name, None)

    def makes_way(self, name: str) -> bool:
        """Whether this one should leave; said once for those that have asked."""
        with self._lock:
            now = self._tick()
            is_first = next(iter(self._since), None) == name
            if not is_first or now - self._since[name] < self._turn_s or now - self._asked_at > self._turn_s:
                return False
            self._asked_at = -inf
            return True
