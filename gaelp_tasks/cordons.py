"""Asking a worker to take nothing new, so that its machine can be mended; the wish outlives the worker."""

from enum import StrEnum

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import worded

__all__ = ["Wish", "ask", "asked", "lift"]


class Wish(StrEnum):
    """What somebody wants of a worker; the value of its key in Redis."""

    CORDON = "cordon"  #: nothing new is taken, what runs there goes on
    HAND_BACK = "hand-back"  #: the same, and what runs there goes back to its queue now


def ask(app: GaelpApp, worker: str, wish: Wish) -> None:
    """Leave the wish for a worker, which sees it within a poll, and again after each restart."""
    with worded(app.settings):
        app.redis.set(app.keys.cordon(worker), wish.value)


def lift(app: GaelpApp, worker: str) -> bool:
    """Let the worker take work again; False where nobody had asked anything of it."""
    with worded(app.settings):
        return bool(app.redis.delete(app.keys.cordon(worker)))


def asked(app: GaelpApp) -> frozenset[str]:
    """The workers of which it is asked, running or not. Raises BrokerUnavailable."""
    stem = app.keys.cordon("")
    with worded(app.settings):
        keys = app.redis.scan_iter(match=app.keys.cordon("*"), count=1000)
        return frozenset(str(key).removeprefix(stem) for key in keys)
