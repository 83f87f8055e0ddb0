"""What this node may take right now: from which queues, in order, and whether at all. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from gaelp_tasks.queues import INBOXES, SYSTEM

__all__ = ["EMBEDS", "Free", "QueueOrder", "free", "in_order"]

EMBEDS = "gaelp.embed"  #: the task that takes a seat; every other one takes a slot

RANKS = {name: rank for rank, name in enumerate((SYSTEM, *INBOXES))}


def in_order(queues: Sequence[str]) -> list[str]:
    """Strict order: maintenance (rare and short), then the tiers, then whatever else is consumed, as given.

    The memory policy will leave out here what has no free slot; an empty list takes nothing.
    """
    return sorted(queues, key=lambda name: RANKS.get(name, len(RANKS)))


class Free(NamedTuple):
    """What is left for the next message; below 0 where the limit was lowered under running work."""

    slots: int
    seats: int

    @property
    def for_any(self) -> int:
        """How many more may be fetched.

        Each may be an invocation or an embedding, which is not known before it is here: there must be room
        for both. 0 slots take nothing.
        """
        return max(0, min(self.slots, self.seats))


def free(held: Sequence[str], *, slots: int, seats: int) -> Free:
    """What those held, by the names of their tasks, leave of these slots and seats."""
    seated = held.count(EMBEDS)
    return Free(slots - (len(held) - seated), seats - seated)


class QueueOrder:
    """kombu's `queue_order_strategy`: its own ones follow the order of consuming, or the alphabet."""

    def __init__(self, queues: Sequence[str] | None = None) -> None:
        self._queues = in_order(queues or ())

    def update(self, queues: Sequence[str]) -> None:
        """The queues consumed have changed."""
        self._queues = in_order(queues)

    def consume(self, count: int) -> list[str]:
        """Up to `count` queues, the most urgent first."""
        return self._queues[:count]

    def rotate(self, last_used: str) -> str:
        """Nothing to rotate: the order is strict."""
        return last_used
