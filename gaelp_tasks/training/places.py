"""The places of this worker for training jobs, and what of the machine they leave."""

import asyncio
import heapq
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from itertools import count as counting
from time import monotonic
from typing import Any

from gaelp_tasks.models.resources import Resources

__all__ = ["NeverFits", "NoRoom", "Places", "Standing", "left", "shared_places"]

LOOK_S = 0.1  #: between two looks at the machine: memory comes back unheard
WAIT_S = 5.0  #: for room; then another worker may have it


class NeverFits(Exception):
    """The job needs more than this worker has at all."""


class NoRoom(Exception):
    """There was none in time, or somebody stopped the waiting; `str()` is why.

    `taken_by_others`: the end of no job here would make room, so nobody should wait behind this one.
    """

    def __init__(self, why: str, *, taken_by_others: bool = False) -> None:
        super().__init__(why)
        self.taken_by_others = taken_by_others


class Standing:
    """One job that has a place."""

    def __init__(self, task_id: str, needs: Resources, priority: int) -> None:
        self.task_id, self.needs, self.priority = task_id, needs, priority
        self.preemptible = False
        self.since = monotonic()

    @property
    def yields_first(self) -> tuple[int, float]:
        """By which the one that makes way is chosen: the least urgent, of those the newest."""
        return self.priority, -self.since


def left(total: Resources, taken: list[Resources], seen: Resources | None = None) -> Resources:
    """What jobs leave of a worker, and at most what is `seen` to be free: others use the machine, too."""
    found = {}
    for name in type(total).model_fields:
        value = getattr(total, name) - sum(getattr(one, name) for one in taken)
        if seen is not None:
            value = min(value, getattr(seen, name))
        found[name] = max(0, value)
    return Resources(**found)


class Places:
    """Who has a place here. Made by the worker; 0 places: it runs no jobs.

    A job that does not fit now waits for what runs to end, and nothing less urgent passes it; meanwhile no
    more jobs are claimed. `total` is what jobs may have, `seen` what the machine has free right now: it reads
    files and disks, so it is asked in a thread, and once for all that wait.
    """

    def __init__(
        self,
        count: int = 0,
        total: Resources = Resources(),  # noqa: B008  immutable
        seen: Callable[[], Resources | None] = lambda: None,
    ) -> None:
        self.count, self.total, self._seen = count, total, seen
        self._standing: dict[str, Standing] = {}
        self._waiting: list[tuple[int, int, Standing]] = []
        self._numbers = counting()
        self._closed_until = 0.0
        self._ended = False
        self._look: asyncio.Future[Resources | None] | None = None
        self._looked_at = 0.0
        self._lock = threading.Lock()

    @property
    def open(self) -> int:
        """How many jobs may be held here now, those that have a place among them; 0: nothing is claimed."""
        with self._lock:
            closed = self._waiting or monotonic() < self._closed_until
        return 0 if closed else self.count

    def end(self) -> tuple[str, ...]:
        """The worker stops: nobody comes in any more. Task ids of those that are here."""
        with self._lock:
            self._ended = True
            return (*self._standing, *(one.task_id for _, _, one in self._waiting))

    def close_for(self, seconds: float) -> None:
        """Claim none for a while: what jobs need besides is not there."""
        self._closed_until = monotonic() + seconds

    def check(self, needs: Resources) -> None:
        """Raises NeverFits."""
        if beyond := needs.beyond(self.total):
            raise NeverFits(f"more {', '.join(beyond)} than this worker has")

    @asynccontextmanager
    async def taken(
        self, task_id: str, needs: Resources, priority: int, stopper: "asyncio.Future[Any]"
    ) -> AsyncIterator[Standing]:
        """A place, once there is room. Raises NeverFits; NoRoom, also after `end`, or by `stopper`."""
        self.check(needs)
        one = Standing(task_id, needs, priority)
        entry = (-priority, next(self._numbers), one)
        with self._lock:
            if self._ended:  # it was claimed in the moment before
                raise NoRoom("its worker stops")
            heapq.heappush(self._waiting, entry)
        try:
            while True:
                look = self._looking()
                await asyncio.wait({look, stopper}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                if look.done() and self._admit(one, look.result()):
                    break
                if stopper.done():
                    raise NoRoom("stopped")
                if monotonic() - one.since > WAIT_S:
                    raise self._no_room(needs, look.result() if look.done() else None)
                await asyncio.wait({stopper}, timeout=LOOK_S)
            yield one
        finally:
            with self._lock:
                self._standing.pop(task_id, None)
                if entry in self._waiting:
                    self._waiting.remove(entry)
                    heapq.heapify(self._waiting)

    def _looking(self) -> "asyncio.Future[Resources | None]":
        """What the machine has free, once that is known: one look for all who ask in its time."""
        look = self._look
        if look is None or (look.done() and monotonic() - self._looked_at >= LOOK_S):
            self._looked_at = monotonic()
            self._look = look = asyncio.ensure_future(asyncio.to_thread(self._seen))
        return look

    def _admit(self, one: Standing, seen: Resources | None) -> bool:
        with self._lock:
            if self._waiting[0][-1] is not one:
                return False
            free = left(self.total, [other.needs for other in self._standing.values()], seen)
            if len(self._standing) >= self.count or one.needs.beyond(free):
                return False
            heapq.heappop(self._waiting)
            one.since = monotonic()
            self._standing[one.task_id] = one
            return True

    def _no_room(self, needs: Resources, seen: Resources | None) -> NoRoom:
        with self._lock:
            taken = [one.needs for one in self._standing.values()]
        lacks, held = needs.beyond(left(self.total, taken, seen)), sum(taken, start=Resources())
        alone = self.total if seen is None else left(self.total, [], seen + held)
        why = f"no worker has enough {', '.join(lacks) or 'places'} free now"
        return NoRoom(why, taken_by_others=bool(needs.beyond(alone)))

    def first_to_yield(self) -> Standing | None:
        """Who makes way where somebody more urgent needs room; None where there is room, or nobody may."""
        with self._lock:
            may = [one for one in self._standing.values() if one.preemptible]
            crowded = len(self._standing) >= self.count or bool(self._waiting)
            return min(may, key=lambda one: one.yields_first) if may and crowded else None

    def waits_above(self, priority: int) -> bool:
        """Whether somebody more urgent waits here for room."""
        with self._lock:
            return any(one.priority > priority for _, _, one in self._waiting)


@cache
def shared_places() -> list[Places]:
    """The places of this process, as its only entry: a worker puts its own there."""
    return [Places()]
