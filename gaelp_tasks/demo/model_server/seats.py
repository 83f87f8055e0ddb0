"""The bounded waiting line in front of one model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gaelp_tasks.demo.model_server.faults import ServerBusy


class Seats:
    """`slots` requests run, `max_waiting` more wait first come first served, the rest are refused."""

    def __init__(self, slots: int, max_waiting: int) -> None:
        self.slots = slots
        self.busy = 0
        self.waiting = 0
        self._max_waiting = max_waiting
        self._free = asyncio.Semaphore(slots)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Hold one seat; a waiter that is cancelled leaves the line. Raises ServerBusy."""
        if self._free.locked() and self.waiting >= self._max_waiting:
            raise ServerBusy
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            self._free.release()
