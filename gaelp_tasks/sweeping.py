"""The sweep: what is due is published, and what nobody holds any more is given back.

Every worker sweeps, and every beat, so that it is done while no worker lives. Redis' own clock decides, and
each sweep is one script: any number of sweepers do no more than one, and one that stood still does no harm.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gaelp_tasks.connections import Refused, SyncRedis
from gaelp_tasks.keys import Keys
from gaelp_tasks.scripts import Script
from gaelp_tasks.settings import Settings

__all__ = [
    "LOOKS_PER_LEASE",
    "SWEEP",
    "SWEEP_AT_MOST",
    "Holders",
    "Sweep",
    "Swept",
    "claims_ttl_s",
    "connection_name",
    "repeated",
]

logger = logging.getLogger(__name__)

SWEEP = Script.read(__package__, "sweep")
SWEEP_AT_MOST = 500  #: of each kind in one script; the next sweep takes the rest
DAY_S = 86_400.0
CONNECTION = "gaelp:"  #: with the holder behind it, the name of its connection in CLIENT LIST
LOOKS_PER_LEASE = 10  #: as many as there are renewals
IDLE_LOOK = 4  #: from one look into CLIENT LIST to the next while nobody else holds anything
LOOKS = 2  #: in a row without its connection, and a holder is dead at the next


def connection_name(holder: str) -> str:
    """How a holder's connection is called in CLIENT LIST; when the name is gone, so is the process."""
    return f"{CONNECTION}{holder}"


def claims_ttl_s(settings: Settings) -> float:
    """How long the numbers of a task are kept, its claims and deaths: longer than all that it may write."""
    return max(settings.result_ttl_s, settings.stream_ttl_s) + DAY_S


class Swept(NamedTuple):
    """What a sweep did."""

    back: int  #: messages given back
    due: int  #: messages whose time had come
    poison: list[str]  #: tasks whose messages killed the worker in which they ran alone

    @property
    def reaped(self) -> int:
        """Messages that were taken from holders that had died, or were taken for dead."""
        return self.back + len(self.poison)


class Sweep:
    """One sweep at each call. Raises what redis-py raises.

    `claims_ttl_s`: see the function; `poison_deaths` is how many workers a message may see die.
    """

    def __init__(self, keys: Keys, *, claims_ttl_s: float, poison_deaths: int) -> None:
        self._where = (
            keys.unacked,
            keys.leases,
            keys.parked,
            keys.parked_messages,
            keys.dead,
            keys.dead_messages,
            keys.queues,
        )
        self._told = (
            SWEEP_AT_MOST,
            keys.swept(""),
            keys.deaths(""),
            int(claims_ttl_s * 1000),
            keys.namespace,
            poison_deaths,
        )

    def __call__(self, redis: SyncRedis, dead: Iterable[str] = ()) -> Swept:
        """`dead`: holders that are known to have died, whose leases are not waited for."""
        return Swept(*SWEEP.run(redis, self._where, (*self._told, *(f"{holder}|" for holder in dead))))


def repeated(sweep: Callable[[], Swept], goes_on: Callable[[], bool]) -> Iterator[Swept]:
    """Sweep until nothing is left, while that `goes_on`; the caller tells who waits for what was poison."""
    while goes_on():
        swept = sweep()
        for task_id in swept.poison:
            logger.error("Task %s killed the worker in which it ran alone: it is a dead letter now.", task_id)
        yield swept
        if max(swept.back, swept.due) < SWEEP_AT_MOST:
            return


class Holders:
    """Who else holds messages, and which of them have died; looks are a tenth of a lease apart, or more.

    `me` is the holder that looks, '' where that one holds nothing itself.
    """

    def __init__(self, keys: Keys, me: str = "") -> None:
        self._keys = keys
        self._me = me
        self._seen: set[str] = set()  # those whose connection was there, since Redis answers us
        self._missed: dict[str, int] = {}  # holder -> at how many looks in a row it was not
        self._ends: dict[str, float] = {}  # latest end of a lease of each, Unix ms, at the last look
        self._sees_clients = True
        self._count = 0  # of looks

    def forget(self) -> None:
        """Redis was away: after a restart or a failover nobody's name is there yet."""
        self._seen.clear()
        self._missed.clear()

    def ends(self, redis: SyncRedis) -> dict[str, float]:
        """Every tag that anybody holds, with the end of its lease, Unix ms. Raises what redis-py raises."""
        leases: Any = redis.zrange(self._keys.leases, 0, -1, withscores=True)
        return dict(leases)

    def dead(self, redis: SyncRedis, leases: Mapping[str, float]) -> set[str]:
        """Look: those whose connection is gone, and which renew no lease of these any more.

        A living one opens its connection anew within a beat of its own. Raises what redis-py raises.
        """
        ends: dict[str, float] = {}  # of the last lease of each
        for tag, end in leases.items():
            holder = tag.partition("|")[0]
            ends[holder] = max(end, ends.get(holder, 0.0))
        ends.pop(self._me, None)
        others = ends.keys()
        renewed = {holder for holder, end in ends.items() if end > self._ends.get(holder, end)}
        self._ends = ends
        looks = self._count % IDLE_LOOK == 0 or bool(others)
        self._count += 1
        self._missed = {holder: looks for holder, looks in self._missed.items() if holder in others}
        if not looks or not self._sees_clients:
            return set()
        try:
            clients: Any = redis.client_list()
        except Refused as error:
            logger.warning("CLIENT LIST is refused (%s): dead workers are noticed by their leases.", error)
            self._sees_clients = False
            return set()
        there = {str(client.get("name")).removeprefix(CONNECTION) for client in clients}
        self._seen = (self._seen | there) & (others | there)
        gone = others - there - renewed
        self._missed = {holder: self._missed.get(holder, 0) + 1 for holder in gone}
        return {holder for holder, looks in self._missed.items() if looks > LOOKS and holder in self._seen}
