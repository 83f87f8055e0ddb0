"""Publishing a due run once: one script looks who leads, looks whether it was published, and puts it there.

A beat that dies while it publishes has either done all of it or nothing, and whoever leads next can tell.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import time
from typing import Any, NamedTuple

from kombu.connection import Connection
from kombu.utils import json as kombu_json

from gaelp_beat.leader import script
from gaelp_tasks import counts
from gaelp_tasks.connections import SyncRedis, unavailable
from gaelp_tasks.keys import Keys

__all__ = ["Deposed", "Press", "Run"]

to_json: Any = kombu_json.dumps  # untyped


class Deposed(Exception):
    """Another beat leads by now."""


class PublishedBefore(Exception):
    """The run is in its queue, or was."""


class Run(NamedTuple):
    """A due run."""

    schedule: str  #: id
    due_ms: int  #: Unix time
    until_ms: int  #: everything that was due up to here is published with it, or dropped
    lease: str  #: under which we lead


class Press:
    """What the messages of a connection go through.

    Private: kombu's Channel._put and _q_for_pri, Connection.transport_cls (tests/integration/test_beat.py).
    """

    def __init__(self, redis: SyncRedis, keys: Keys, now: Callable[[], float] = time) -> None:
        self._redis = redis
        self._now = now
        self._publish: Any = redis.register_script(script("publish"))
        self._keys = keys
        self._run: Run | None = None
        self.passed = False  #: the last run is in its queue, or was before

    def fit(self, connection: Connection) -> Connection:
        """Have what is put into a queue through this connection go through here."""
        untyped: Any = connection
        base = untyped.get_transport_cls()  # Redis' own, or that of sentinels
        kept: Any = base.Channel
        press = self

        class Channel(kept):
            def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
                priority = self._get_message_priority(message, reverse=False)
                place = f"{self.global_keyprefix}{self._q_for_pri(queue, priority)}"
                if not press.put(place, message):
                    super()._put(queue, message, **kwargs)

        ours = untyped.transport_cls = type("Transport", (base,), {"Channel": Channel})
        switch = untyped.switch

        def switch_to(place: str) -> None:
            switch(place)  # to the next of several sentinels, and with it to kombu's own transport
            untyped.transport_cls = ours

        untyped.switch = switch_to
        return connection

    @contextmanager
    def printing(self, run: Run) -> Iterator[None]:
        """What is put into a queue in here is this run; one that was published before is passed over.

        Raises Deposed.
        """
        self._run, self.passed = run, False
        try:
            yield
        except PublishedBefore:
            pass
        finally:
            self._run = None

    def put(self, place: str, message: Any) -> bool:
        """Put the message of the run into a list; False where no run is printed now."""
        run = self._run
        if run is None:
            return False
        done = self._publish(
            keys=[self._keys.beat, self._keys.beat_published, place],
            args=[run.lease, run.schedule, run.due_ms, run.until_ms, to_json(message)],
        )
        if done < 0:
            raise Deposed
        self.passed = True
        if not done:
            raise PublishedBefore
        self._count(run)
        return True

    def _count(self, run: Run) -> None:
        """For `gaelp metrics`; where Redis has gone since, it goes uncounted."""
        late_ms = max(0, int(self._now() * 1000) - run.due_ms)
        with suppress(*unavailable), self._redis.pipeline(transaction=False) as pipe:
            pipe.hincrby(self._keys.counts, counts.SCHEDULED, 1)
            pipe.hincrby(self._keys.counts, counts.LATE_MS, late_ms)
            pipe.execute()
