"""Which queues of models may hold something that this node should take."""

import threading
from collections.abc import Callable, Collection
from itertools import count
from time import time

from gaelp_tasks.connections import SyncRedis
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import ANY, EMBED, model_of
from gaelp_workers.dispatch import names_of, takes
from gaelp_workers.leases import Leases

__all__ = ["KnownQueues"]

GRACE_S = 10.0  #: after the start, for other nodes to say what they have
MISSED_S = 600.0  #: a model whose node was not heard for this long is one that nobody has
TIDY_EVERY = 20  #: looks


class KnownQueues:
    """The queues that were heard of, and those of them that this node serves; safe from any thread.

    `own` gives the models of this worker's nodes.
    """

    def __init__(
        self, leases: Leases, own: Callable[[], Collection[str]], now: Callable[[], float] = time
    ) -> None:
        self._leases = leases
        self._own = own
        self._now = now
        self.told = True  #: whether Redis tells of what comes; else our own queues are always looked at
        self._lock = threading.Lock()
        self._known: frozenset[str] = frozenset()
        self._news: frozenset[str] = frozenset()  # heard of since the last look began
        self._elsewhere: frozenset[str] = frozenset()
        self._mine: frozenset[str] = frozenset()
        self._looks = count()
        self._began = now()

    def heard(self, *queues: str) -> None:
        """Somebody has put something there."""
        with self._lock:
            self._news |= {queue for queue in queues if model_of(queue)}
            self._known |= self._news

    def look(self, redis: SyncRedis) -> None:
        """See what there is, also from those who do not call it out. Raises what redis-py raises."""
        with self._lock:
            self._news = frozenset()
        self._mine = own = names_of(self._own())
        self._elsewhere = frozenset(self._leases.models(redis, self._now() - MISSED_S))
        mine = [f"{tier}.{name}" for tier in Tier for name in (*own, ANY, EMBED)]
        tidy = next(self._looks) % TIDY_EVERY == 0
        waiting = self._leases.waiting(redis, also={*mine, *self._known}, tidy=tidy)
        with self._lock:
            self._known = self._news.union(waiting, () if self.told else mine)

    @property
    def served(self) -> list[str]:
        """Those that this node takes from."""
        if not self._mine or self._now() - self._began < GRACE_S:  # what is nobody's cannot be told yet
            return [queue for queue in self._known if model_of(queue) in {ANY, EMBED, *self._mine}]
        return [queue for queue in self._known if takes(queue, self._mine, self._elsewhere)]
