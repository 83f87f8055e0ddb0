"""Which models the runs of this process need right now: what an owner of a node decides by."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.models.invocation import Tier

__all__ = ["Asked", "Demand"]


@dataclass(slots=True)
class Asked:
    """A run that has settled on its model: it waits for the load, and then runs."""

    model: str
    tier: Tier
    since: float  #: `tick` when it began to wait, or to run
    runs: bool = False


class Need(NamedTuple):
    """One run's need of a model."""

    id: str
    asked: Asked


class Demand:
    """Who needs which model; kept on the loop, where all runs are."""

    def __init__(self, tick: Callable[[], float] = monotonic) -> None:
        self.heard_by: list[Callable[[], None]] = []  #: told whenever somebody ends
        self.writing: set[str] = set()  #: ids of those whose model answers; any thread may read it
        self._tick = tick
        self._asked: dict[str, Asked] = {}

    @contextmanager
    def of(self, invocation_id: str, model: str, tier: Tier) -> Iterator[Asked]:
        """It waits for the model from now on, and needs it until the block is left."""
        asked = self._asked[invocation_id] = Asked(canonical(model), tier, self._tick())
        try:
            yield asked
        finally:
            if self._asked.get(invocation_id) is asked:  # else it was claimed here anew meanwhile
                del self._asked[invocation_id]
                self.writing.discard(invocation_id)
            for hear in self.heard_by:
                hear()

    def begins(self, asked: Asked) -> None:
        """The model is in memory: it runs."""
        asked.runs, asked.since = True, self._tick()

    def needs(self) -> list[Need]:
        """All of them, in the order of their coming."""
        return [Need(name, asked) for name, asked in self._asked.items()]
