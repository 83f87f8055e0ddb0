"""What is done to workers and to Redis. Each strike lasts until it is over; what it did is in the cluster."""

import signal
import time
from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import Protocol

from faults.history.cluster import Cluster, Worker
from faults.history.record import Outage, Stop


class Fault(Protocol):
    """One kind of trouble."""

    name: str
    needs_victim: bool  #: it strikes a worker, which must be busy then

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        """Do it."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a worker and its children."""

    name = "kill"
    needs_victim = True

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        at = time.monotonic()
        victim.signal(signal.SIGKILL)
        cluster.outages.append(Outage(victim.name, at))
        cluster.bury(victim)


@dataclass(frozen=True)
class Freeze:
    """SIGSTOP, and SIGCONT after a while: what a paused virtual machine or a lost network does."""

    least_s: float = 6.0
    most_s: float = 20.0
    name = "freeze"
    needs_victim = True

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        at = time.monotonic()
        victim.signal(signal.SIGSTOP)
        cluster.pause(rng.uniform(self.least_s, self.most_s))
        victim.signal(signal.SIGCONT)
        cluster.outages.append(Outage(victim.name, at, time.monotonic()))


@dataclass(frozen=True)
class Terminate:
    """SIGTERM, and SIGKILL to whoever is still there long after."""

    within_s: float = 30.0
    name = "term"
    needs_victim = True

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        at = time.monotonic()
        cluster.workers.remove(victim)  # its end is no surprise, and its place is free at once
        victim.terminate()
        gone = cluster.until(lambda: not victim.child.alive, within_s=self.within_s)
        cluster.stops.append(Stop(victim.name, at, time.monotonic() - at if gone else None))
        cluster.bury(victim)


@dataclass(frozen=True)
class RedisKill:
    """SIGKILL to Redis, which comes back with its append-only file."""

    down_s: float = 2.0
    name = "redis-kill"
    needs_victim = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        cluster.server.kill()
        cluster.pause(self.down_s)
        cluster.server.start()


@dataclass(frozen=True)
class RedisFreeze:
    """Redis keeps its connections and answers nothing for a while."""

    for_s: float = 6.0
    name = "redis-freeze"
    needs_victim = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        cluster.server.freeze()
        cluster.pause(self.for_s)
        cluster.server.thaw()


@dataclass(frozen=True)
class Cut:
    """Redis closes every client's connection, as a proxy or a fail-over does, and goes on."""

    name = "cut"
    needs_victim = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        with closing(cluster.server.client()) as client:
            client.client_kill_filter(_type="normal", skipme=True)


FAULTS: dict[str, Fault] = {
    fault.name: fault for fault in (Kill(), Freeze(), Terminate(), RedisKill(), RedisFreeze(), Cut())
}
