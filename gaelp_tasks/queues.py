"""Which queue an invocation travels on, and the Redis lists that a queue is made of. Pure.

Any service may publish to an inbox, one per tier. Workers only sort those: what calls a model moves to the
queue of its tier and model, where it waits for that model alone.
"""

import base64
import json
import re
from typing import Any, NamedTuple

from gaelp_tasks.models.invocation import DEFAULT_PRIORITY, Tier

__all__ = [
    "ANY",
    "EMBED",
    "INBOXES",
    "SEPARATOR",
    "STEPS",
    "SYSTEM",
    "TRAINING",
    "Place",
    "arguments",
    "lists",
    "lower_tier",
    "model_of",
    "place",
    "plain",
    "route",
    "step_of",
    "tier_of",
]

INBOXES = tuple(tier.value for tier in Tier)  #: any service may publish to these, highest tier first
SYSTEM = "system"  #: maintenance
TRAINING = "training"  #: training jobs; only workers that have places for them take from it
ANY = "any"  #: in place of a model: none is named, the node's own choice
EMBED = "embed"  #: the same for embeddings

STEPS = range(10)  #: of priority: 0 is our 10, 9 is our 1; kombu counts them so on Redis
SEPARATOR = "\x06\x16"  #: kombu's, between a queue and a step; the first step has none


def plain(model: str) -> str:
    """A model's name as a part of a queue's name (contract, section 3)."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", model)


def route(tier: Tier, model: str | None = None, *, embeds: bool = False) -> str:
    """The queue for a call of this model; None is the node's own choice."""
    return f"{tier}.{plain(model) if model else EMBED if embeds else ANY}"


def tier_of(queue: str) -> Tier | None:
    """The tier of an inbox or of a model's queue; None for any other queue."""
    head = queue.partition(".")[0]
    return Tier(head) if head in INBOXES else None


def model_of(queue: str) -> str:
    """The model of a queue, as its name has it; '' for an inbox and any other queue."""
    return queue.partition(".")[2] if tier_of(queue) else ""


def step_of(priority: int) -> int:
    """The step of a priority; 10, the most urgent, is the first."""
    return STEPS.stop - priority


def lists(queue: str) -> list[str]:
    """The Redis lists of a queue, the most urgent first, without the namespace."""
    return [queue, *(f"{queue}{SEPARATOR}{step}" for step in STEPS[1:])]


def lower_tier(asked: Tier | None, queue: str | None) -> Tier:
    """The tier that counts, of the one asked for and the one of the queue named (contract, section 3).

    Either may be None; both given and different: the lower one, so that nobody jumps a queue by argument.
    """
    tiers = [tier for tier in (asked, tier_of(queue or "")) if tier is not None]
    return max(tiers, key=lambda tier: tier.rank, default=Tier.INTERACTIVE)


class Place(NamedTuple):
    """Where a message belongs."""

    queue: str
    step: int


#: tasks that call a model, and whether they embed; every other one runs straight from an inbox
CALLS = {"gaelp.invoke_agent": False, "gaelp.embed": True}


def place(message: bytes, inbox: str) -> Place | None:
    """Where a message of an inbox belongs; None for one that stays, because it calls no model.

    What its arguments say wrongly is not judged here: it moves on, and fails when it runs.
    """
    try:
        told = json.loads(message)
    except (ValueError, RecursionError):  # it is refused where it arrives
        return Place(route(lower_tier(None, inbox)), step_of(DEFAULT_PRIORITY))
    try:
        embeds = CALLS[told["headers"]["task"]]
    except (LookupError, TypeError):
        return None
    given = arguments(told)
    model, tier, priority = given.get("model"), given.get("tier"), given.get("priority")
    counts = lower_tier(Tier(tier) if tier in INBOXES else None, inbox)
    rated = priority if type(priority) is int and 1 <= priority <= STEPS.stop else DEFAULT_PRIORITY
    return Place(route(counts, model if isinstance(model, str) else None, embeds=embeds), step_of(rated))


def arguments(told: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a message; {} where it cannot be read."""
    try:
        encoded = told["properties"].get("body_encoding") == "base64"
        body = base64.b64decode(told["body"]) if encoded else told["body"]
        given = json.loads(body)[1]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}
