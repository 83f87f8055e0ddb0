"""An answer on its way to the terminal, for every verb that shows one."""

import sys
from collections.abc import Iterator

from gaelp_tasks import app
from gaelp_tasks.cli.output import note
from gaelp_tasks.connections import Forbidden
from gaelp_tasks.errors import BrokerUnavailable, StreamRestarted
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.results import InvocationHandle

__all__ = ["pieces", "printable", "warn_without_worker"]

#: what would move the cursor, ring or rename the window if a model said it
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def pieces(handle: InvocationHandle) -> Iterator[str]:
    """The text as it comes, ready to print; a run that starts over is told and read anew."""
    while True:
        try:
            for piece in handle.stream():
                yield printable(piece)
        except StreamRestarted:
            print()
            note("The run had to start over; its answer from the beginning:")
        else:
            return


def printable(text: str) -> str:
    """As it is for a pipe or a file; for a terminal without control characters."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def warn_without_worker(tier: Tier) -> None:
    """Say at once that nobody is there to work, where our Redis user may know. Raises BrokerUnavailable."""
    try:
        nodes = live_nodes(app)
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, Forbidden):
            return  # a producer's user sees no keys but its own
        raise
    if not nodes:
        note(
            f"No worker is running; what is asked waits in queue {tier} until one is (`gaelp worker`, or "
            "`make up`). Ctrl-C cancels it."
        )
