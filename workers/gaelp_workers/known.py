"""Which queues of models may hold something that this node should take."""

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import count
from time import time

from gaelp_tasks.connections import SyncRedis
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import ANY, EMBED, SEPARATOR, TRAINING, model_of
from gaelp_workers.dispatch import names_of, takes
from gaelp_workers.leases import Head, Leases
from gaelp_workers.turns import Waiting

__all__ = ["KnownQueues", "Waiting"]

GRACE_S = 4.0  #: after the start, for other nodes to say what they have: four of their polls
MISSED_S = 600.0  #: a model whose node was not heard for this long is one that nobody has
TIDY_EVERY = 20  #: looks


class KnownQueues:
    """The queues that were heard of, and those of them that this node serves; safe from any thread.

    `own` gives the models of this worker's nodes; `runs_jobs`: it has places for training jobs.
    """

    def __init__(
        self,
        leases: Leases,
        own: Callable[[], Collection[str]],
        now: Callable[[], float] = time,
        *,
        runs_jobs: bool = False,
    ) -> None:
        self._leases = leases
        self._runs_jobs = runs_jobs
        self._own = own
        self._now = now
        self.told = True  #: whether Redis tells of what comes; else our own queues are always looked at
        self.waiting: Mapping[str, Waiting] = {}  #: by queue, those served that hold something
        self.jobs = False  #: training jobs may wait
        self.jobs_seen = False  #: and have ever done so
        self._jobs_heard = False  # since the last look began
        self._heads: dict[str, tuple[str, float]] = {}  # list -> its next message, and since when we see that
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
            if TRAINING in queues:
                self.jobs = self.jobs_seen = self._jobs_heard = True

    def look(self, redis: SyncRedis) -> None:
        """See what there is, also from those who do not call it out. Raises what redis-py raises."""
        with self._lock:
            self._news, self._jobs_heard = frozenset(), False
        self._mine = own = names_of(self._own())
        named, elsewhere = self._leases.named(redis, self._now() - MISSED_S)
        self._elsewhere = frozenset(elsewhere)
        mine = [f"{tier}.{name}" for tier in Tier for name in (*own, ANY, EMBED)]
        tidy = next(self._looks) % TIDY_EVERY == 0
        waiting = self._leases.waiting(redis, named, also={*mine, *self._known}, tidy=tidy)
        with self._lock:
            self._known = self._news.union(waiting, () if self.told else mine)
        self._age(self._leases.heads(redis, self._takes()))
        if self._runs_jobs:
            there = self._leases.there(redis, TRAINING)
            with self._lock:
                self.jobs = there or self._jobs_heard
                self.jobs_seen |= self.jobs

    def _age(self, heads: Mapping[str, Head]) -> None:
        """Note what waits where, and since when."""
        now, seen = self._now(), self._heads
        self._heads = {
            name: seen[name] if name in seen and seen[name][0] == head.id else (head.id, now)
            for name, head in heads.items()
        }
        waiting: dict[str, Waiting] = {}
        for name, head in heads.items():
            told = None if head.since_s is None else min(head.since_s, now)  # by a clock that may be ahead
            found, queue = Waiting(head.size, told, self._heads[name][1], name), name.partition(SEPARATOR)[0]
            before = waiting.get(queue)
            if before is not None:
                oldest = min(before, found, key=lambda one: one.since_s)
                found = replace(oldest, count=before.count + head.size)
            waiting[queue] = found
        self.waiting = waiting

    def _takes(self) -> list[str]:
        """Those that are this node's business, as of the last look."""
        if not self._mine or self._now() - self._began < GRACE_S:  # what is nobody's cannot be told yet
            return [queue for queue in self._known if self._has(queue)]
        return [queue for queue in self._known if takes(queue, self._mine, self._elsewhere)]

    def _has(self, queue: str) -> bool:
        return model_of(queue) in {ANY, EMBED, *self._mine}

    @property
    def served(self) -> list[str]:
        """Those that this node takes from.

        What is nobody's only where the last look saw it wait: its own node may have come since, and what was
        put there afterwards is for that one.
        """
        return [queue for queue in self._takes() if self._has(queue) or queue in self.waiting]
