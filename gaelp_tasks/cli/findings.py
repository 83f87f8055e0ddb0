"""What a check has found, as `gaelp doctor` prints it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

__all__ = ["Check", "listed"]

MOST_NAMED = 5  #: of what one row lists


class Check(NamedTuple):
    """One finding."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    finding: str
    advice: str = ""


def listed(words: Sequence[str]) -> str:
    """A few of them, and how many more there are."""
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return f"{', '.join(words[:MOST_NAMED])}{more}"
