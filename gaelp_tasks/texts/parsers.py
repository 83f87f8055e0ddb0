"""The parsers that are always there: an answer's text to a JSON value. ValueError: the text does not fit."""

import json
import re
from typing import Any

from gaelp_tasks.models.shape import read_json
from gaelp_tasks.texts.fences import blocks

__all__ = ["code_blocks", "items", "json_value", "lines"]

BRACKET = re.compile(r"[{\[]")
MARKER = re.compile(r"[ \t]*(?:[-*+•]|\(?\d{1,4}[.)])[ \t]+(\S.*)")
TRIES = 64  #: brackets that may open a value before the text counts as one without


def json_value(text: str) -> Any:
    """The JSON in an answer: all of it, else a fenced block, else the first object or array in the prose."""
    candidates = [text, *(block.text for block in blocks(text))]
    for candidate in candidates:
        try:
            return read_json(candidate)
        except ValueError:
            continue
    decoder = json.JSONDecoder()
    for found, _ in zip(BRACKET.finditer(text), range(TRIES), strict=False):
        try:
            return decoder.raw_decode(text, found.start())[0]
        except (ValueError, RecursionError):
            continue
    raise ValueError("there is no JSON in it")


def code_blocks(text: str) -> list[dict[str, str]]:
    """The fenced code blocks: `language`, `text`, and `name` where the fence names a file."""
    return [block.data() for block in blocks(text)]


def lines(text: str) -> list[str]:
    """The lines that say something, without the blanks around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def items(text: str) -> list[str]:
    """The items of the lists in it, bulleted or numbered; without any, its lines.

    A line without a marker goes on with the item before it, up to a blank line.
    """
    found: list[str] = []
    goes_on = False
    for line in text.splitlines():
        marked = MARKER.fullmatch(line.rstrip())
        if marked:
            found.append(marked[1])
        elif line.strip() and goes_on:
            found[-1] += f" {line.strip()}"
        goes_on = bool(marked) or (goes_on and bool(line.strip()))
    return found or lines(text)
