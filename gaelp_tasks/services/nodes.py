"""The nodes of the cluster for who looks after them: what they announce, and wishes that outlive a worker."""

from typing import Any

from gaelp_tasks import cordons
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.cordons import Wish
from gaelp_tasks.errors import NotFound
from gaelp_tasks.overview import live_nodes

__all__ = ["announced", "lift", "wish", "worker_of"]


def announced(app: GaelpApp) -> list[dict[str, Any]]:
    """Every node as its worker announces it; a cordoned worker that does not run has no `url`.

    Raises BrokerUnavailable.
    """
    nodes, asked = live_nodes(app), cordons.asked(app)
    found = [{**node.model_dump(mode="json"), "cordoned": node.worker in asked} for node in nodes]
    absent = sorted(asked - {node.worker for node in nodes})
    return found + [{"worker": worker, "url": None, "cordoned": True} for worker in absent]


def wish(app: GaelpApp, given: str, wanted: Wish) -> dict[str, Any]:
    """Have a worker take nothing new; what still runs there. Raises NotFound, BrokerUnavailable."""
    worker = worker_of(app, given)
    cordons.ask(app, worker, wanted)
    mine = [node for node in live_nodes(app) if node.worker == worker]
    running = {name for node in mine for name in (*node.running, *node.unplaced)}
    return {"worker": worker, "state": "cordoned", "running": len(running)}


def lift(app: GaelpApp, given: str) -> dict[str, Any]:
    """Let a worker take work again. Raises NotFound, BrokerUnavailable."""
    worker = worker_of(app, given)
    cordons.lift(app, worker)
    return {"worker": worker, "state": "open"}


def worker_of(app: GaelpApp, given: str) -> str:
    """A worker's whole name; the address of a node stands for its worker where that has no other node.

    Raises NotFound, BrokerUnavailable.
    """
    nodes = live_nodes(app)
    workers = {node.worker for node in nodes} | cordons.asked(app)
    if given in workers:
        return given
    owners = {node.worker for node in nodes if node.url == given.rstrip("/")}
    if len(owners) == 1 and sum(node.worker in owners for node in nodes) == 1:
        return owners.pop()
    known = f"there are: {', '.join(sorted(workers))}" if workers else "none is running"
    raise NotFound(f"there is no worker {given!r}; {known}.")
