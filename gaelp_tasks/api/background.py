"""What the process does beside answering: relays, hubs. A work takes the state and runs until cancelled."""

from collections.abc import Awaitable, Callable

from gaelp_tasks.api.replays import forget_old
from gaelp_tasks.api.state import State
from gaelp_tasks.api.watching import watchers

__all__ = ["BACKGROUND"]

BACKGROUND: list[Callable[[State], Awaitable[None]]] = [forget_old, watchers.hear, watchers.look]
