"""The thread that renews our leases, sweeps those of the dead and publishes what is due."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from gaelp_tasks.connections import Refused, SyncRedis, unavailable
from gaelp_workers.leases import SWEEP_AT_MOST, Leases

__all__ = ["Keeper", "connection_name"]

logger = logging.getLogger(__name__)

SWEEPS = 2  #: per beat, so that what is due is published soon
CONNECTION = "gaelp:"  #: with the holder behind it, the name of its connection in CLIENT LIST
IDLE_LOOK = 4  #: beats between two looks while nobody else holds anything
STRAY_LOOKS = 5  #: in a row at a lease of ours that nothing here holds: its claim was never answered
LOOKS = 2  #: in a row without its connection, and a holder is dead at the next


def connection_name(holder: str) -> str:
    """How a holder's connection is called in CLIENT LIST; when the name is gone, so is the process."""
    return f"{CONNECTION}{holder}"


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
        self._seen: set[str] = set()  # holders whose connection was there, since Redis answers us
        self._missed: dict[str, int] = {}  # holder -> at how many looks in a row it was not
        self._ends: dict[str, float] = {}  # latest end of a lease of each other holder, at the last look
        self._strays: dict[str, int] = {}  # tag that nothing here holds -> at how many looks in a row
        self._lost: set[str] = set()  # tags of what was stopped because its lease had ended
        self._sees_clients = True
        self._beats = 0
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
            ends = self._leases.ends(self._redis)
            dead = self._dead(ends)
            self._renew_in_time()
            self._sweep(dead)
            self._renew_in_time()
            self._give_back_strays(ends)
            self._on_beat(self._redis)
        except unavailable as error:
            self._seen.clear()  # after a restart or a failover nobody's name is there yet
            self._missed.clear()
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
        while not self._over.is_set() and self._clock() < until:
            swept = self._leases.sweep(self._redis, dead)
            for task_id in swept.poison:
                logger.error(
                    "Task %s killed the worker in which it ran alone: it is a dead letter now.", task_id
                )
                self._on_poison(task_id)
            if max(swept.back, swept.due) < SWEEP_AT_MOST:
                return

    def _lose(self, tags: Iterable[str]) -> None:
        """Stop what ran under these; once, for the same task may be claimed here anew meanwhile."""
        held = self._leases.held
        self._lost &= held.keys()
        for tag in tags:
            if tag in held and tag not in self._lost:  # else it has ended meanwhile
                self._lost.add(tag)
                self._on_lost(held[tag].id)

    def _dead(self, leases: Mapping[str, float]) -> set[str]:
        """Holders whose connection is gone, and which renew no lease any more.

        A living one opens its connection anew within a beat of its own.
        """
        ends: dict[str, float] = {}  # of the last lease of each
        for tag, end in leases.items():
            holder = tag.partition("|")[0]
            ends[holder] = max(end, ends.get(holder, 0.0))
        ends.pop(self._leases.holder, None)
        others = ends.keys()
        renewed = {holder for holder, end in ends.items() if end > self._ends.get(holder, end)}
        self._ends = ends
        looks = self._beats % IDLE_LOOK == 0 or bool(others)
        self._beats += 1
        self._missed = {holder: looks for holder, looks in self._missed.items() if holder in others}
        if not looks or not self._sees_clients:
            return set()
        try:
            clients: Any = self._redis.client_list()
        except Refused as error:
            logger.warning("CLIENT LIST is refused (%s): dead workers are noticed by their leases.", error)
            self._sees_clients = False
            return set()
        there = {str(client.get("name")).removeprefix(CONNECTION) for client in clients}
        self._seen = (self._seen | there) & (others | there)
        gone = others - there - renewed
        self._missed = {holder: self._missed.get(holder, 0) + 1 for holder in gone}
        return {holder for holder, looks in self._missed.items() if looks > LOOKS and holder in self._seen}
