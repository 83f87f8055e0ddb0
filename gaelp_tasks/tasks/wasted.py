"""Tokens that were told for nothing: by runs that were lost, and started over instead of going on."""

from collections.abc import Iterable, Sequence
from typing import Any

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.streams import End, Event, Piece, Start, parse

__all__ = ["wasted", "wasted_in"]


def wasted(app: GaelpApp, ids: Sequence[str]) -> dict[str, int]:
    """Of those of these, which have ended, that were claimed more than once: how many. It blocks.

    Streams are there for a while after the end; of one that is gone nothing is known. Raises what redis-py
    raises.
    """
    if not ids:
        return {}
    claims: Any = app.redis.mget([app.keys.claims(name) for name in ids])
    again = [name for name, count in zip(ids, claims, strict=True) if count is not None and int(count) > 1]
    found = {}
    for name in again:
        entries: Any = app.redis.xrange(app.keys.stream(name))
        found[name] = wasted_in(parse(*entry) for entry in entries)
    return {name: tokens for name, tokens in found.items() if tokens}


def wasted_in(events: Iterable[Event]) -> int:
    """The tokens of the text that the first end does not belong to; 0 where there is no end. Pure."""
    tokens: list[tuple[int, int]] = []
    first = 0
    for event in events:
        match event:
            case Start():
                first = event.first
            case Piece(claim=claim, tokens=count):
                tokens.append((claim, count))
            case End():
                return sum(count for claim, count in tokens if claim < first)
    return 0
