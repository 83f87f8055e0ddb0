"""Names of container images, and the patterns of those that may be used. Pure."""

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["ImageName", "check_pattern", "is_allowed"]

LONGEST = 500
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?"
NAME = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[a-f0-9]{{64}})?",
    re.ASCII,
)
PATTERN = re.compile(r"[A-Za-z0-9_.:@/*\[\]-]+", re.ASCII)


def _named(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("no name of an image: write one as registry/name:tag")
    return value


ImageName = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST, examples=["gcr.io/gaelp/optimizer:v2.0"]),
    AfterValidator(_named),
]


def check_pattern(pattern: str) -> None:
    """Raises ValueError for what no image could match."""
    if not PATTERN.fullmatch(pattern):
        raise ValueError(f"{pattern!r} is no name of images; write one as registry/name:*")


def is_allowed(image: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern covers the image, letter by letter; `*` stands for anything."""
    return any(re.fullmatch(re.escape(one).replace(r"\*", ".*"), image) for one in patterns)
