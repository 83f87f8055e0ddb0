"""The default router: the node that has least to do."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

from gaelp_tasks.clients.routers.base import Ask, NodeState
from gaelp_tasks.clients.routers.table import NodeTable

__all__ = ["LeastLoadedRouter", "least_loaded"]


def least_loaded(nodes: Sequence[NodeState], ask: Ask) -> NodeState:
    """The node with the model in memory, else with the fewest calls per slot, else the quicker one.

    Where all are full, fewest calls come first. Latencies within a factor of two are alike: then that node is
    next which has waited longest.
    """

    def rank(node: NodeState) -> tuple[float, float, int, int]:
        cold, load = ask.model not in node.loaded, node.in_flight / max(node.slots, 1)
        first, second = (load, cold) if node.in_flight >= node.slots else (cold, load)
        return first, second, _bucket(node.latency_s.get(ask.model)), node.turn

    return min(nodes, key=rank)


def _bucket(latency_s: float | None) -> int:
    """Whole powers of two; one that is not known counts as the quickest, so that it becomes known."""
    return -1000 if not latency_s else math.floor(math.log2(latency_s))


class LeastLoadedRouter(NodeTable):
    """Healthy nodes first, then free ones, then as `least_loaded` says; see NodeTable for the arguments."""

    def __init__(
        self,
        urls: Iterable[str],
        *,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(urls, least_loaded, slots=slots, clock=clock)
