"""Looks at the cluster every few seconds, on a thread: what processes have, and which answers can be read.

Results and streams are kept for minutes only, so that Redis is soon as full as it gets. Each is read again
some time after its answer was heard: who was told something else meanwhile would be seen.
"""

import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from types import TracebackType
from typing import Self

import psutil
import redis
import requests

from faults.history.record import Acceptance
from faults.history.subjects import Ours
from faults.soak.check import REDIS
from faults.soak.cluster import Place, Soaked
from faults.soak.flat import Sample

__all__ = ["KEPT_BYTES", "Watch", "looked_at"]

ANSWERS_S = 1.0  #: Redis, or the page of `gaelp metrics`; a look that takes longer is left out
#: of Redis, for each task: its claims and its last holder, which are kept for a day longer than the result
#: (docs/redis.md), each a key with an end, of 70 to 90 bytes, and a short value
KEPT_BYTES = 400
READER = Ours(node="")  # its way to read answers


class Watch:
    """`with Watch(cluster, asked, ...) as watch: ... watch.samples, watch.found`."""

    def __init__(
        self, cluster: Soaked, asked: Callable[[], Collection[str]], *, every_s: float, late_s: float
    ) -> None:
        self.samples: list[Sample] = []
        self.found: list[Acceptance] = []
        self.looks = self.missed_scrapes = 0
        self._cluster, self._asked = cluster, asked
        self._every_s, self._late_s = every_s, late_s
        self._answered: dict[str, float] = {}  # id -> when its answer was found
        self._again: set[str] = set()  # those that were read again
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def missing(self) -> set[str]:
        """Ids without an answer so far."""
        return set(self._asked()) - self._answered.keys()

    def heard(self, answers: Collection[Acceptance]) -> None:
        """Answers that somebody else has heard."""
        now = time.monotonic()
        for told in answers:
            self._answered.setdefault(told.id, now)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()

    @property
    def alive(self) -> bool:
        """It looks."""
        return self._thread.is_alive()

    def rest(self) -> None:
        """Look at nothing more by itself."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._over.wait(self._every_s):
                self.samples += looked_at(self._cluster.places())
                with suppress(redis.RedisError, OSError):
                    self._ask_redis()
                self._scrape(session)
                self.looks += 1

    def _ask_redis(self) -> None:
        options = {"decode_responses": True, "socket_timeout": ANSWERS_S}
        with closing(redis.Redis.from_url(self._cluster.server.url, **options)) as store:
            self.samples += of_redis(store, len(self._asked()))
            self.read(store)

    def read(self, store: redis.Redis, *, everything: bool = False) -> None:
        """Read the answers that are missing, and each once more that is old enough."""
        now, asked = time.monotonic(), self._asked()
        answered = self._answered.copy()  # at once: the main thread adds to it
        old = {one for one, at in answered.items() if everything or now - at >= self._late_s}
        # of the lines of a batch nothing is kept, but for marks
        late = (old & {*asked}) - self._again
        told = list(READER.answers(store, self.missing | late))
        self.found += told
        self.heard(told)
        self._again |= late

    def _scrape(self, session: requests.Session) -> None:
        try:
            session.get(self._cluster.page, timeout=ANSWERS_S + 3.0).raise_for_status()
        except requests.RequestException:
            self.missed_scrapes += 1


def looked_at(places: Collection[Place]) -> list[Sample]:
    """What these processes have now; who has just ended is left out."""
    found = []
    for name, pid in places:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            with process.oneshot():
                figures = {
                    "descriptors": process.num_fds(),
                    "threads": process.num_threads(),
                    # Redis' heap follows its data, which is judged instead
                    "heap" if name == "redis" else "memory": process.memory_full_info().uss,
                }
            at = time.monotonic()
            found += [Sample(name, pid, figure, at, float(value)) for figure, value in figures.items()]
    return found


def of_redis(store: redis.Redis, tasks: int) -> list[Sample]:
    """Its data, after so many tasks: that outlives the process."""
    told = store.info()
    keys = told.get("db0", {"keys": 0, "expires": 0})
    figures = {
        "used": told["used_memory"] - KEPT_BYTES * tasks,
        "everlasting": keys["keys"] - keys["expires"],
    }
    at = time.monotonic()
    return [Sample(REDIS, 0, figure, at, float(value)) for figure, value in figures.items()]
