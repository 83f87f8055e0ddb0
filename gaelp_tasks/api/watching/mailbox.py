"""What one watcher has still to be sent: a bounded buffer that loses its oldest rather than grow."""

import asyncio
from collections import deque
from typing import NamedTuple

__all__ = ["MOST_BYTES", "MOST_EVENTS", "Mailbox", "Taken"]

MOST_EVENTS = 256
MOST_BYTES = 1024 * 1024  #: of what waits; the same text waits for many, and is there once


class Taken(NamedTuple):
    """What came since the last time, in its order: first what was lost, then the events."""

    missed: int  #: events that were thrown away, all of them older than these
    texts: tuple[str, ...]
    again: bool  #: what is known now should be told once more: some may have been told to nobody
    over: bool  #: nothing more will come


class Mailbox:
    """Events for one watcher. Filled and emptied on one event loop."""

    def __init__(self, most_events: int = MOST_EVENTS, most_bytes: int = MOST_BYTES) -> None:
        self._most_events, self._most_bytes = most_events, most_bytes
        self._texts: deque[str] = deque()
        self._bytes = 0
        self._missed = 0
        self._again = self._over = False
        self._filled = asyncio.Event()

    def put(self, text: str) -> None:
        """One more; never waits."""
        self._texts.append(text)
        self._bytes += len(text)
        while len(self._texts) > self._most_events or self._bytes > self._most_bytes:
            self._bytes -= len(self._texts.popleft())
            self._missed += 1
        self._filled.set()

    def tell_again(self) -> None:
        """Have the watcher told what is known now, behind what waits."""
        self._again = True
        self._filled.set()

    def close(self) -> None:
        """Wake who takes, for the last time."""
        self._over = True
        self._filled.set()

    async def take(self) -> Taken:
        """All that waits, as soon as there is something."""
        await self._filled.wait()
        self._filled.clear()
        taken = Taken(self._missed, tuple(self._texts), self._again, self._over)
        self._texts.clear()
        self._bytes = self._missed = 0
        self._again = False
        return taken
