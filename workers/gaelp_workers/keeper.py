"""The thread that renews our leases, sweeps those of the dead and publishes what is due."""

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic

from gaelp_tasks.connections import SyncRedis, unavailable
from gaelp_tasks.sweeping import repeated
from gaelp_workers.leases import Leases

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

SWEEPS = 2  #: per beat, so that what is due is published soon
STRAY_LOOKS = 5  #: in a row at a lease of ours that nothing here holds: its claim was never answered


class Keeper(threading.Thread):
    """Renews the leases and sweeps, on a thread and a connection that no task can keep busy.

    A holder that could not renew for half a lease stops its own runs, before anybody else may start them.
    """

    def __init__(
        self,
        leases: Leases,
        redis: SyncRedis,
        *,
        every_s: float,
        on_lost: Callable[[str], None],
        on_beat: Callable[[SyncRedis], None] = lambda _: None,
        on_poison: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(name="gaelp-leases", daemon=True)
        self._leases = leases
        self._redis = redis
        self._every_s = every_s
        self._on_lost = on_lost
        self._on_beat = on_beat
        self._on_poison = on_poison
        self._clock = clock
        self._renewed_at = clock()
        self._others = leases.others
        self._strays: dict[str, int] = {}  # tag that nothing here holds -> at how many looks in a row
        self._lost: set[str] = set()  # tags of what was stopped because its lease had ended
        self._over = threading.Event()

    @property
    def lively(self) -> bool:
        """Whether it has renewed lately: nobody else may run yet what is held here."""
        return self._clock() - self._renewed_at <= self._leases.ttl_s / 2

    def start(self) -> None:
        """Be seen to live before anything is held. Raises what redis-py raises."""
        self._redis.ping()
        super().start()

    def run(self) -> None:
        """Until `stop`."""
        while True:
            try:
                self.beat()
            except Exception:
                logger.exception("Leases could not be renewed; the next beat tries again.")
            for _ in range(SWEEPS - 1):
                if self._over.wait(self._every_s / SWEEPS):
                    return
                with suppress(*unavailable):  # the next beat tells
                    self._sweep()
            if self._over.wait(self._every_s / SWEEPS):
                return

    def stop(self) -> None:
        """End; what is held then runs out by itself."""
        self._over.set()

    def beat(self) -> None:
        """One renewal, one look at the others, one sweep; a slow Redis is asked to renew in between, too."""
        try:
            self._renew()
            self._leases.pay(self._redis)
            ends = self._others.ends(self._redis)
            dead = self._others.dead(self._redis, ends)
            self._renew_in_time()
            self._sweep(dead)
            self._renew_in_time()
            self._give_back_strays(ends)
            self._on_beat(self._redis)
        except unavailable as error:
            self._others.forget()
            if not self.lively:
                logger.warning("Cannot renew leases (%s): what runs here is stopped.", error)
                self._lose(self._leases.held)

    def _renew(self) -> None:
        asked_at = self._clock()
        self._lose(self._leases.renew(self._redis))
        self._renewed_at = asked_at  # after that: what was lost must not begin as if all were well

    def _renew_in_time(self) -> None:
        if self._clock() - self._renewed_at > self._every_s:
            self._renew()

    def _give_back_strays(self, tags: Iterable[str]) -> None:
        """What a claim brought whose answer never came here: nobody would run it until its lease ends."""
        there = self._leases.strays(tags)
        self._strays = {tag: self._strays.get(tag, 0) + 1 for tag in there}
        late = [tag for tag, looks in self._strays.items() if looks > STRAY_LOOKS]
        if late:
            logger.warning("Giving back %d messages whose claim was never answered.", len(late))
            self._leases.forsake(self._redis, late)

    def _sweep(self, dead: Iterable[str] = ()) -> None:
        """All that is due or was forsaken; what takes longer than a beat is for the next one."""
        until = self._clock() + self._every_s
        for swept in repeated(
            lambda: self._leases.sweep(self._redis, dead),
            lambda: not self._over.is_set() and self._clock() < until,
        ):
            for task_id in swept.poison:
                self._on_poison(task_id)

    def _lose(self, tags: Iterable[str]) -> None:
        """Stop what ran under these; once, for the same task may be claimed here anew meanwhile."""
        held = self._leases.held
        self._lost &= held.keys()
        for tag in tags:
            if tag in held and tag not in self._lost:  # else it has ended meanwhile
                self._lost.add(tag)
                self._on_lost(held[tag].id)
