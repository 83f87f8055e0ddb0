"""Which queues this node may take from right now, in order. Pure; kombu asks before each fetch."""

from collections.abc import Sequence

from gaelp_tasks.queues import INBOXES, SYSTEM

__all__ = ["QueueOrder", "in_order"]

RANKS = {name: rank for rank, name in enumerate((SYSTEM, *INBOXES))}


def in_order(queues: Sequence[str]) -> list[str]:
    """Strict order: maintenance (rare and short), then the tiers, then whatever else is consumed, as given.

    The memory policy will leave out here what has no free slot; an empty list takes nothing.
    """
    return sorted(queues, key=lambda name: RANKS.get(name, len(RANKS)))


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
