"""SOLLOL's choice among the nodes that are allowed. The only module that knows SOLLOL; pinned to 0.9.66.

Its pool would look for nodes on the network, start Dask, write to Redis and call nodes while it holds a lock.
So it gets a pool's decision and nothing else: no address that it could call, no thread that lives on.
"""

import io
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gaelp_tasks.clients.routers.base import Ask, NodeState
from gaelp_tasks.clients.routers.table import NodeTable

__all__ = ["PINNED", "PRIVATE_NAMES", "SWITCHES", "DecidingPool", "SollolRouter"]

PINNED = "0.9.66"
#: What we replace in its pool, and what we call: a test looks for all of them in the pinned release.
PRIVATE_NAMES = (
    "_auto_discover",
    "_auto_register_with_dashboard",
    "_deduplicate_nodes",
    "_health_check_loop",
    "_init_dask_client",
    "_init_ray_cluster",
    "_query_node_vram",
    "_refresh_vram_loop",
    "_select_node",
)
#: While it is imported and built; afterwards the process has its own environment again.
SWITCHES = {
    "SOLLOL_ROUTING_LOG": "false",  # else each decision is written to Redis
    "SOLLOL_REDIS_URL": "redis://127.0.0.1:1/0",  # nobody listens there; the default is the broker of many
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: MB; SOLLOL takes a node without a figure for one without a GPU, and then ignores its latency.
UNKNOWN_GPU_MB = 4000
#: Its words for prompts of fewer tokens than that.
COMPLEXITY = (("simple", 500), ("medium", 2000), ("complex", math.inf))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo what importing and building do to the process: its environment, its output, its warnings."""
    environment = dict(os.environ)
    buffering = [
        (stream, stream.line_buffering)
        for stream in (sys.stdout, sys.stderr)
        if isinstance(stream, io.TextIOWrapper)
    ]
    os.environ.update(SWITCHES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        for stream, line_buffering in buffering:
            stream.reconfigure(line_buffering=line_buffering)


with _undisturbed():
    from sollol.intelligence import IntelligentRouter
    from sollol.pool import OllamaPool


class _Analysis(IntelligentRouter):
    """What SOLLOL finds out about a request by its words; we know it, and show it none."""

    def detect_task_type(self, payload: Mapping[str, Any]) -> str:
        return "embedding" if payload["kind"] == "embed" else "generation"

    def estimate_complexity(self, payload: Mapping[str, Any]) -> tuple[str, int]:
        tokens = payload["est_tokens"]
        return next(word for word, below in COMPLEXITY if tokens < below), tokens


class DecidingPool(OllamaPool):
    """An OllamaPool that decides, and does nothing else.

    Nodes are numbers to it: it gets no address, and none can reach its log.
    """

    def __init__(self) -> None:
        with _undisturbed():
            super().__init__(
                nodes=[_name(0)],  # without one it would scan the network
                register_with_dashboard=False,
                enable_ray=False,
                enable_dask=False,
                enable_gpu_redis=False,
                enable_cache=False,
            )
        self.router = _Analysis()
        self._vram_refresh_thread.join()
        self._health_check_thread.join()
        self.session.close()

    def decide(self, nodes: Sequence[NodeState], ask: Ask) -> NodeState:
        """The node that it would take."""
        self.nodes = [_name(number) for number in range(len(nodes))]
        self.stats["node_performance"] = {
            _key(number): _performance(number, node, ask) for number, node in enumerate(nodes)
        }
        asked = {"model": ask.model, "kind": ask.kind, "est_tokens": ask.est_tokens}
        chosen, _ = self._select_node(asked, ask.priority)
        return nodes[int(chosen["host"])]

    def _auto_discover(self) -> None:
        raise AssertionError("SOLLOL is never asked to look for nodes.")

    def _auto_register_with_dashboard(self) -> None: ...

    def _deduplicate_nodes(self) -> None: ...

    def _health_check_loop(self) -> None: ...

    def _init_dask_client(self, dask_address: str | None = None) -> None: ...  # never: see `enable_dask`

    def _init_ray_cluster(self) -> None: ...

    def _query_node_vram(self, node: Mapping[str, str]) -> int:  # noqa: ARG002  its signature
        return UNKNOWN_GPU_MB

    def _refresh_vram_loop(self) -> None: ...


def _name(number: int) -> dict[str, str]:
    return {"host": str(number), "port": ""}


def _key(number: int) -> str:
    """As SOLLOL makes it of a name."""
    return f"{number}:"


def _performance(number: int, node: NodeState, ask: Ask) -> dict[str, Any]:
    """What SOLLOL keeps about a node, from what we know."""
    return {
        "host": _key(number),
        "available": True,
        "active_requests": node.in_flight,
        "loaded_models": sorted(node.loaded),
        "latency_ms": node.latency_s.get(ask.model, 0.0) * 1000,
        "success_rate": node.success_rate,
        "gpu_free_mem": UNKNOWN_GPU_MB,
        "cpu_load": 0.5,
        "priority": 999,
    }


class SollolRouter(NodeTable):
    """Healthy nodes first, then free ones, as everywhere; among those SOLLOL's intelligent routing decides.

    See NodeTable for the arguments.
    """

    def __init__(
        self,
        urls: Iterable[str],
        *,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(urls, DecidingPool().decide, slots=slots, clock=clock)
