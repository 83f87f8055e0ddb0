"""What this node may take right now: from which queues, in order, and how many of each kind. Pure."""

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from gaelp_tasks.queues import ANY, EMBED, INBOXES, SYSTEM, model_of, plain, tier_of

__all__ = ["EMBEDS", "Free", "Kind", "Offer", "QueueOrder", "free", "in_order", "names_of", "offer", "takes"]

EMBEDS = "gaelp.embed"  #: the task that takes a seat
ERRANDS = 4  #: of maintenance at once; they wait for no model, and none waits for them

RANKS = {name: rank for rank, name in enumerate((SYSTEM, *INBOXES))}
LATEST = ":latest"  #: the tag that Ollama adds where none is given


class Kind(StrEnum):
    """What a message takes while it is held."""

    SLOT = "slot"
    SEAT = "seat"  #: an embedding: it shares the calls of its model
    ERRAND = "errand"  #: maintenance

    @classmethod
    def of(cls, queue: str, task: str) -> "Kind":
        """The kind of a message by where it was and what it runs."""
        if task == EMBEDS:
            return cls.SEAT
        return cls.ERRAND if queue == SYSTEM else cls.SLOT


class Free(NamedTuple):
    """How many more of each kind may be held; 0 takes none."""

    slots: int
    seats: int
    errands: int


def free(held: Sequence[Kind], *, slots: int, seats: int) -> Free:
    """What those held leave of these slots and seats; the limits may have been lowered under running work."""
    return Free(
        max(0, slots - held.count(Kind.SLOT)),
        # a node that takes no invocations takes no embeddings either
        max(0, seats - held.count(Kind.SEAT)) if slots > 0 else 0,
        max(0, ERRANDS - held.count(Kind.ERRAND)),
    )


def in_order(queues: Sequence[str]) -> list[str]:
    """Strict order: maintenance (rare and short), then the tiers, then whatever else is consumed."""
    return sorted(queues, key=lambda name: RANKS.get(tier_of(name) or name, len(RANKS)))


class Offer(NamedTuple):
    """Queues to take from, in groups: all of a group's most urgent messages come before its next ones."""

    queues: tuple[str, ...]
    groups: tuple[int, ...]  #: of each queue; the first group is served first


def offer(consumed: Sequence[str], models: Iterable[str], turn: int = 0) -> Offer:
    """What to take from: `consumed` are Celery's queues, `models` those of models that this node serves.

    Of each tier consumed: its inbox, then in turns the queues of models.
    """
    known = sorted(models)
    queues: list[str] = []
    groups: list[int] = []
    for group, name in enumerate(in_order(consumed)):
        tier = tier_of(name) if name in INBOXES else None
        of_it = [name]
        if tier is not None:
            names = [queue for queue in known if tier_of(queue) is tier]
            shift = turn % max(1, len(names))
            of_it += names[shift:] + names[:shift]
        queues += of_it
        groups += [group] * len(of_it)
    return Offer(tuple(queues), tuple(groups))


def names_of(models: Iterable[str]) -> frozenset[str]:
    """How queues call these models: the tag `latest` may be given or left out."""
    names = set()
    for model in models:
        short = model.removesuffix(LATEST)
        names |= {plain(short), plain(short + LATEST)} if ":" not in short else {plain(model)}
    return frozenset(names)


def takes(queue: str, own: Collection[str], elsewhere: Collection[str]) -> bool:
    """Whether a model's queue is this node's business, by the names of its own models and of others' models.

    Calls that name no model are everybody's. So is what nobody has: the run fails with a sentence instead of
    waiting for ever.
    """
    model = model_of(queue)
    return model != "" and (model in own or model in {ANY, EMBED} or model not in elsewhere)


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
