"""What is done to the cluster, by the names of plan.FAULTS; those of workers and Redis are history's.

A strike at a worker, a beat or a node only begins; one at Redis or the database lasts until it is over.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from faults.history.cluster import Worker
from faults.history.faults import Freeze, Kill, RedisFreeze, RedisKill, Terminate
from faults.soak.cluster import Soaked
from faults.soak.model_server import crowd
from faults.soak.programs import Node

__all__ = ["KINDS", "strike"]

FROZEN_S = (6.5, 12.0)  #: longer than a lease
REDIS_AWAY_S = 1.0  #: from its death to its new start: what a supervisor takes
REDIS_FROZEN_S = 6.0
NODE_AWAY_S = 15.0
FULL_S = 20.0
LEADS_S = 15.0  #: within which some beat leads, whatever was done just before


class Kind(Protocol):
    """One kind of trouble."""

    def strike(self, cluster: Soaked, victim: Worker, rng: Random) -> str:
        """Do it; who was struck."""


def a_node(cluster: Soaked, rng: Random) -> Node:
    """One that has work to do."""
    nodes = cluster.until(lambda: cluster.nodes_at_work)
    assert nodes, "no node is well"
    return rng.choice(nodes)


@dataclass(frozen=True)
class OfHistory:
    """One of the history harness."""

    fault: Freeze | Kill | RedisFreeze | RedisKill | Terminate

    def strike(self, cluster: Soaked, victim: Worker, rng: Random) -> str:
        self.fault.strike(cluster, victim, rng)
        return victim.name if self.fault.needs_victim else "redis"


class BeatKill:
    """SIGKILL to the beat that leads; a new one is started in its place at once."""

    def strike(self, cluster: Soaked, victim: Worker, rng: Random) -> str:
        leader = cluster.until(cluster.leader, within_s=LEADS_S)
        assert leader is not None, "no beat leads"
        leader.kill()
        return leader.name


class NodeCut:
    """Nothing passes between a worker and its node for a while; then all its connections break."""

    def strike(self, cluster: Soaked, victim: Worker, rng: Random) -> str:
        node = a_node(cluster, rng)
        node.proxy.silence()
        cluster.later(NODE_AWAY_S, node.proxy.reset)
        return node.name


class NodeKill:
    """SIGKILL to a worker's model server; it is started again at once, with no model in memory."""

    def strike(self, cluster: Soaked, victim: Worker, rng: Random) -> str:
        node = a_node(cluster, rng)
        node.program.kill()
        return node.name


class MemoryFull:
    """A neighbour takes all memory of a node: its model has to go, and none may be loaded for a while."""

    def strike(self, cluster: Soaked, victim: Worker, rng: Random) -> str:
        node = a_node(cluster, rng)
        crowd(node.direct, on=True)
        cluster.later(FULL_S, partial(crowd, node.direct, on=False))
        return node.name


class DatabaseAway:
    """PostgreSQL restarts; SQLite is locked by somebody else."""

    def strike(self, cluster: Soaked, victim: Worker, rng: Random) -> str:
        cluster.database.away(cluster.pause)
        return cluster.database.kind


KINDS: Mapping[str, Kind] = {
    "worker-kill": OfHistory(Kill()),
    "worker-freeze": OfHistory(Freeze(*FROZEN_S)),
    "worker-term": OfHistory(Terminate()),
    "beat-kill": BeatKill(),
    "redis-kill": OfHistory(RedisKill(REDIS_AWAY_S)),
    "redis-freeze": OfHistory(RedisFreeze(REDIS_FROZEN_S)),
    "node-cut": NodeCut(),
    "node-kill": NodeKill(),
    "memory-full": MemoryFull(),
    "database": DatabaseAway(),
}


def strike(name: str, cluster: Soaked, rng: Random) -> tuple[str, float]:
    """Do one of them; who was struck, and the seconds until it had begun, or was over.

    A worker that is struck has been ready, and nothing is done to it already.
    """
    began = time.monotonic()
    able = cluster.until(
        lambda: [worker for worker in cluster.workers if worker.ready_at is not None and not worker.struck]
    )
    assert able, "no worker is well"
    whom = KINDS[name].strike(cluster, rng.choice(able), rng)
    return whom, time.monotonic() - began
