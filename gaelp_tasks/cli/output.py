"""How verbs print: tables for people, JSON for programs, warnings beside the output."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

__all__ = ["Json", "OneId", "note", "out", "print_json"]

WIDE = 200  #: columns where nobody's terminal sets a limit: in a pipe or a file nothing is cut off

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

OneId = Annotated[str, typer.Argument(metavar="ID", help="Id of an invocation, or how it begins.")]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2, default=str)
    sys.stdout.write("\n")


def note(sentence: str) -> None:
    """A remark for the person, on standard error."""
    _err.print(f"[yellow]gaelp:[/] {escape(sentence)}")
