"""Agents and what belongs to them, in the words and columns that verbs print."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from gaelp_tasks.cli.schedule_words import printable

__all__ = ["facts_of", "table_of"]

NOTHING: tuple[Any, ...] = (None, "", [], {})


def facts_of(thing: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field that says something, with its text."""
    for name, value in thing.items():
        if value not in NOTHING:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield name, printable(text)


def table_of(things: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """A row for each, with these of its fields."""
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for thing in things:
        cells = ["-" if thing[name] in NOTHING else printable(str(thing[name])) for name in columns]
        table.add_row(*map(escape, cells))
    return table
