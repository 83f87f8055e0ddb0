"""What the process does beside answering: relays, hubs. A work takes the state and runs until cancelled."""

from collections.abc import Awaitable, Callable

from gaelp_tasks.api import exporter
from gaelp_tasks.api.replays import forget_old
from gaelp_tasks.api.state import State
from gaelp_tasks.api.watching import watchers
from gaelp_tasks.services import batch_bills, forsaken, job_line, upkeep
from gaelp_tasks.services.relay import Relay

__all__ = ["BACKGROUND", "LISTENING"]


async def _accept(at: State) -> None:
    """Keep and publish what is submitted here."""
    await at.accepting.run()


async def _relay(at: State) -> None:
    """Publish what was left, and note what has ended."""
    await Relay(at.app, at.db, keep_s=at.settings.api_keep_s, purse=at.purse).run()


async def _stop_agents(at: State) -> None:
    """Stop agents that have reached their limit."""
    await at.purse.run(at)


async def _jobs(at: State) -> None:
    """Let in training jobs that fit by now, and publish those that Redis has lost."""
    await job_line.look_after(at.app, at.db, at.settings)


BACKGROUND: list[Callable[[State], Awaitable[None]]] = [
    forget_old,
    watchers.hear,
    watchers.look,
    _accept,
    _relay,
    _stop_agents,
    batch_bills.watch,
    forsaken.watch,
    upkeep.prune,
    _jobs,
]
#: the same for a program of its own, which has ports
LISTENING: list[Callable[[State], Awaitable[None]]] = [exporter.listen]
