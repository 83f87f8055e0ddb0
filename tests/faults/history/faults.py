"""What is done to workers and to Redis; what it did is in the cluster.

A strike at a worker only begins: `Cluster.until_over` sees to its end, so that several workers can be frozen
or stopping at a time. A strike at Redis lasts until it is over.
"""

import signal
import time
from contextlib import closing
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any, Protocol

from faults.history.cluster import Cluster, Worker
from faults.history.record import Outage, Stop

GONE_S = 30.0  #: after SIGTERM


class Fault(Protocol):
    """One kind of trouble."""

    name: str
    needs_victim: bool  #: it strikes a worker, which must be busy then
    needs_proxies: bool  #: it strikes what lies between workers and Redis

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        """Do it."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a worker and its children."""

    name = "kill"
    needs_victim = True
    needs_proxies = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        at = time.monotonic()
        victim.signal(signal.SIGKILL)
        cluster.outages.append(Outage(victim.name, at))
        cluster.bury(victim)


@dataclass(frozen=True)
class Host:
    """A worker's whole machine is gone: the process, and nobody closes its connections to Redis."""

    name = "host"
    needs_victim = True
    needs_proxies = True

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        assert victim.proxy is not None, "the cluster was not given proxies"
        victim.proxy.silence()  # until the run is over
        Kill().strike(cluster, victim, rng)


@dataclass(frozen=True)
class Freeze:
    """SIGSTOP, and SIGCONT after a while: what a paused virtual machine or a lost network does."""

    least_s: float = 6.0
    most_s: float = 20.0
    name = "freeze"
    needs_victim = True
    needs_proxies = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        for_s = rng.uniform(self.least_s, self.most_s)
        at = time.monotonic()
        victim.signal(signal.SIGSTOP)

        def over() -> bool:
            if time.monotonic() < at + for_s:
                return False
            victim.signal(signal.SIGCONT)
            cluster.outages.append(Outage(victim.name, at, time.monotonic()))
            return True

        cluster.until_over(victim, over)


@dataclass(frozen=True)
class Terminate:
    """SIGTERM, and SIGKILL to whoever is still there long after."""

    name = "term"
    needs_victim = True
    needs_proxies = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        at = time.monotonic()
        cluster.workers.remove(victim)  # its end is no surprise, and its place is free at once
        victim.terminate()

        def over() -> bool:
            gone, took_s = not victim.child.alive, time.monotonic() - at
            if not gone and took_s < GONE_S:
                return False
            cluster.stops.append(Stop(victim.name, at, took_s if gone else None))
            cluster.bury(victim)
            return True

        cluster.until_over(victim, over)


@dataclass(frozen=True)
class RedisKill:
    """SIGKILL to Redis, which comes back with its append-only file."""

    for_s: float = 2.0
    name = "redis-kill"
    needs_victim = False
    needs_proxies = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        cluster.without_redis(cluster.server.kill, cluster.server.start, for_s=self.for_s)


@dataclass(frozen=True)
class RedisFreeze:
    """Redis keeps its connections and answers nothing for a while."""

    for_s: float = 6.0
    name = "redis-freeze"
    needs_victim = False
    needs_proxies = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        cluster.without_redis(cluster.server.freeze, cluster.server.thaw, for_s=self.for_s)


@dataclass(frozen=True)
class Partition:
    """Nothing passes between workers and Redis for a while; then all arrives, or all connections break."""

    for_s: float = 6.0
    name = "partition"
    needs_victim = False
    needs_proxies = True

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        proxies = [worker.proxy for worker in cluster.workers if worker.proxy is not None]
        assert proxies, "the cluster was not given proxies"
        broken = rng.random() < 0.5

        def begin() -> None:
            for proxy in proxies:
                proxy.silence()

        def end() -> None:
            for proxy in proxies:
                proxy.reset() if broken else proxy.resume()

        cluster.without_redis(begin, end, for_s=self.for_s)


@dataclass(frozen=True)
class Cut:
    """Redis closes every client's connection, as a proxy or a fail-over does, and goes on."""

    name = "cut"
    needs_victim = False
    needs_proxies = False

    def strike(self, cluster: Cluster, victim: Worker, rng: Random) -> None:
        with closing(cluster.server.client()) as client:
            client.client_kill_filter(_type="normal", skipme=True)


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Kill(),
        Host(),
        Freeze(),
        Terminate(),
        RedisKill(),
        RedisFreeze(),
        Partition(),
        Cut(),
    )
}


def lasting(fault: Any, *seconds: float) -> Fault:
    """The fault, lasting from the least to the most of these seconds; what has no length stays as it is."""
    lengths = [field.name for field in fields(fault)] if seconds else []
    told = {name: min(seconds) if name == "least_s" else max(seconds) for name in lengths}
    changed: Fault = replace(fault, **told)
    return changed
