"""What this node may take right now: from which queues, in order, and how many of each kind. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import (
    ANY,
    EMBED,
    INBOXES,
    SEPARATOR,
    SYSTEM,
    TRAINING,
    model_of,
    plain,
    tier_of,
)

__all__ = [
    "CLOSED",
    "EMBEDS",
    "INVOKES",
    "JOBS",
    "OTHERS",
    "Capacity",
    "Free",
    "Held",
    "Kind",
    "Offer",
    "QueueOrder",
    "free",
    "gains",
    "in_order",
    "names_in_queues",
    "names_of",
    "offer",
    "pool_of",
    "takes",
]

EMBEDS = "gaelp.embed"  #: the task that takes a seat
INVOKES = "gaelp.invoke_agent"  #: the task that can be stopped and goes on from its text
ERRANDS = 4  #: of maintenance at once; they wait for no model, and none waits for them
OTHERS = ""  #: the pool of what calls no model that a node here has
JOBS = "training jobs"  #: the pool of their places; no model is called so in the name of a queue
SHUT = -1  #: room of a pool that has no slots at all: its model embeds nothing either

RANKS = {name: rank for rank, name in enumerate((SYSTEM, *INBOXES))}
LATEST = ":latest"  #: the tag that Ollama adds where none is given


class Kind(StrEnum):
    """What a message takes while it is held."""

    SLOT = "slot"
    SEAT = "seat"  #: an embedding: it shares the calls of its model
    ERRAND = "errand"  #: maintenance
    JOB = "job"  #: a training job: a place of this worker

    @classmethod
    def of(cls, queue: str, task: str) -> "Kind":
        """The kind of a message by where it was and what it runs."""
        if task == EMBEDS:
            return cls.SEAT
        if queue == TRAINING:
            return cls.JOB
        return cls.ERRAND if queue == SYSTEM else cls.SLOT


class Held(NamedTuple):
    """The task of a message that is held."""

    id: str
    kind: Kind = Kind.SLOT
    alone: bool = False  #: it has seen workers die, and nothing else may be held beside it
    task: str = ""
    model: str = ""  #: as its queue calls it; by `Capacity.models` the pool whose slot it takes
    tier: Tier | None = None  #: of its queue
    since_s: float = 0.0  #: `monotonic` when it was claimed
    preempted: int = 0  #: how often it had to make way before
    turn: bool = False  #: it came by the trickle or after its maximum wait: it is not preempted


class Capacity(NamedTuple):
    """What may be held here at once, right now."""

    slots: Mapping[str, int]  #: model -> invocations; 0: none
    models: Mapping[str, str]  #: a model as queues call it, `ANY` and `EMBED` too -> model
    others: int  #: tasks that call no model, and calls of models that no node here has, which fail
    seats: int  #: embeddings, all models together
    errands: int = ERRANDS


CLOSED = Capacity({}, {}, 0, 0, 0)  #: nothing new is taken


class Free(NamedTuple):
    """How many more may be held; 0 takes none."""

    slots: Mapping[str, int]  #: by pool, `OTHERS` first; SHUT where there is none at all
    seats: int
    errands: int
    models: Mapping[str, str] = {}  #: as in the capacity
    beyond: Mapping[tuple[str, Tier], int] = {}  #: by pool and tier: slots of runs that make way for it

    @property
    def some(self) -> bool:
        """Whether there is room for anything."""
        return self.errands > 0 or self.seats > 0 or any(count > 0 for count in self.slots.values())


def free(held: Iterable[Held], capacity: Capacity) -> Free:
    """What those held leave of this capacity; it may have been lowered under running work."""
    slots = {OTHERS: capacity.others, **dict.fromkeys(capacity.models.values(), 0), **capacity.slots}
    left = {pool: count if count > 0 else SHUT for pool, count in slots.items()}
    seats, errands = capacity.seats, capacity.errands
    for task in held:
        if task.kind is Kind.SEAT:
            seats -= 1
        elif task.kind is Kind.ERRAND:
            errands -= 1
        else:
            pool = JOBS if task.kind is Kind.JOB else capacity.models.get(task.model, OTHERS)
            if left.get(pool, 0) > 0:
                left[pool] -= 1
    return Free(left, max(0, seats), max(0, errands), capacity.models)


def gains(now: Free, before: Free) -> bool:
    """Whether there is room now of a kind, or in a pool, that had none before."""
    return (
        now.seats > 0 >= before.seats
        or now.errands > 0 >= before.errands
        or any(count > 0 >= before.slots.get(pool, 0) for pool, count in now.slots.items())
    )


def pool_of(queue: str, models: Mapping[str, str]) -> str:
    """The pool from which the messages of a queue take their slots."""
    return JOBS if queue == TRAINING else models.get(model_of(queue), OTHERS)


def in_order(queues: Sequence[str]) -> list[str]:
    """Strict order: maintenance (rare and short), then the tiers, then whatever else is consumed."""
    return sorted(queues, key=lambda name: RANKS.get(tier_of(name) or name, len(RANKS)))


class Offer(NamedTuple):
    """Queues to take from, in groups: all of a group's most urgent messages come before its next ones."""

    queues: tuple[str, ...]
    groups: tuple[int, ...]  #: of each queue; the first group is served first
    turns: int = 0  #: so many lead, of each of which one message goes before everything


def offer(
    consumed: Sequence[str],
    models: Iterable[str],
    turn: int = 0,
    first: Collection[str] = (),
    *,
    jobs: bool = False,
) -> Offer:
    """What to take from: `consumed` are Celery's queues, `models` those of models that this node serves.

    `first` are queues of models, or lists of them, of which one message each goes before all others. Then
    come, of each tier consumed, its inbox and in turns the queues of models; last, with `jobs`, training jobs
    of a worker that consumes maintenance, for their places are nobody else's.
    """
    known = sorted(models)
    first = [name for name in first if name.partition(SEPARATOR)[0] in known and tier_of(name) in consumed]
    queues: list[str] = [*first]
    groups: list[int] = [0] * len(first)
    for group, name in enumerate(in_order(consumed), 1):
        tier = tier_of(name) if name in INBOXES else None
        of_it = [name]
        if tier is not None:
            names = [queue for queue in known if tier_of(queue) is tier]
            shift = turn % max(1, len(names))
            of_it += names[shift:] + names[:shift]
        queues += of_it
        groups += [group] * len(of_it)
    if jobs and SYSTEM in consumed:
        queues.append(TRAINING)
        groups.append(len(consumed) + 1)
    return Offer(tuple(queues), tuple(groups), len(first))


def names_of(models: Iterable[str]) -> frozenset[str]:
    """How queues call these models: the tag `latest` may be given or left out."""
    names = set()
    for model in models:
        short = model.removesuffix(LATEST)
        names |= {plain(short), plain(short + LATEST)} if ":" not in short else {plain(model)}
    return frozenset(names)


@lru_cache(maxsize=8)
def names_in_queues(models: tuple[str, ...], default: str, embeds: str) -> Mapping[str, str]:
    """How queues call these models; `default` and `embeds` are those of calls that name none, '' of none."""
    names = {name: model for model in models for name in names_of([model])}
    unnamed = {ANY: default, EMBED: embeds}
    return names | {name: names[plain(model)] for name, model in unnamed.items() if plain(model) in names}


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
