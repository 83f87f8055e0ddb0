"""Waiting for something to become true: the event ends the wait, the deadline only fails the test."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within_s: float = 20.0, what: str = "") -> T:
    """The first true value that `look` returns."""
    deadline = time.monotonic() + within_s
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what or look}"
        time.sleep(0.01)
