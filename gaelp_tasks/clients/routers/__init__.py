"""Who chooses the node of a call. SollolRouter is imported on first use: it needs the extra `sollol`."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gaelp_tasks.clients.routers.base import Ask, Kind, Lease, NodeRouter, NodeState, Outcome
from gaelp_tasks.clients.routers.least_loaded import LeastLoadedRouter
from gaelp_tasks.clients.routers.table import NodeTable, allowed
from gaelp_tasks.errors import SettingsError

if TYPE_CHECKING:
    from gaelp_tasks.clients.routers.sollol import SollolRouter

__all__ = [
    "Ask",
    "Kind",
    "Lease",
    "LeastLoadedRouter",
    "NodeRouter",
    "NodeState",
    "NodeTable",
    "Outcome",
    "allowed",
    "router_named",
]


def router_named(name: str, urls: Iterable[str], *, slots: int = 1) -> NodeRouter:
    """The router that GAELP_NODE_ROUTER names. Raises SettingsError where it cannot be had."""
    if name == "sollol":
        return _sollol_router()(urls, slots=slots)
    return LeastLoadedRouter(urls, slots=slots)


def _sollol_router() -> "Callable[..., SollolRouter]":
    if find_spec("sollol") is None:
        raise SettingsError(
            "SOLLOL is not installed here: install gaelp-tasks[sollol], or choose "
            "GAELP_NODE_ROUTER=least-loaded."
        )
    from gaelp_tasks.clients.routers.sollol import SollolRouter  # noqa: PLC0415  it brings a hundred packages

    return SollolRouter


def __getattr__(name: str) -> Any:
    if name != "SollolRouter":
        raise AttributeError(f"module 'gaelp_tasks.clients.routers' has no attribute {name!r}")
    try:
        return _sollol_router()
    except SettingsError as error:
        raise ImportError(str(error)) from None
