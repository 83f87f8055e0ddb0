"""Which of several beats publishes: a lease in Redis, and the fence that keeps a deposed one out."""

import os
import socket
from importlib.resources import files
from typing import Any, NamedTuple
from uuid import uuid4

from gaelp_tasks.connections import SyncRedis
from gaelp_tasks.keys import Keys

__all__ = ["TTL_S", "Leader", "Term"]

TTL_S = 3.0  #: of the lease; a beat that stood still for longer is deposed


class Term(NamedTuple):
    """Leading, as of one moment."""

    fence: int  #: higher than that of every leader before
    now_ms: int  #: Unix time by Redis' clock, which all beats share
    lease: str  #: the value that the lease has while we lead


def script(name: str) -> str:
    """The text of a script in lua/."""
    return (files(__package__) / "lua" / f"{name}.lua").read_text()


class Leader:
    """One beat's way to lead. Its methods raise what redis-py raises."""

    def __init__(self, redis: SyncRedis, keys: Keys, *, ttl_s: float = TTL_S) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._lead: Any = redis.register_script(script("lead"))
        self._release: Any = redis.register_script(script("release"))
        self._keys = keys
        self._ttl_ms = int(ttl_s * 1000)
        self._lease = ""  # as it was when we led last

    def lead(self) -> Term | None:
        """Take the lease where nobody has it, or renew ours; None while another beat leads.

        Either way it is written down that this beat is there.
        """
        fence, now_ms = self._lead(
            keys=[self._keys.beat, self._keys.beat_fence, self._keys.beat_seen],
            args=[self.name, self._ttl_ms],
        )
        self._lease = f"{self.name}|{fence}" if fence else ""
        return Term(int(fence), int(now_ms), self._lease) if fence else None

    def resign(self) -> None:
        """Let another beat lead at once."""
        if self._lease:
            self._release(keys=[self._keys.beat], args=[self._lease])
            self._lease = ""
