"""`gaelp dlq`: the messages that could not run."""

import base64
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from time import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app, dead_letters
from gaelp_tasks.cli.output import Json, note, out
from gaelp_tasks.dead_letters import DeadLetter, Which

__all__ = ["dlq_app"]

dlq_app = typer.Typer(
    help="Dead letters: messages that could not run, kept with their reason.",
    no_args_is_help=True,
    epilog="Example: gaelp dlq list --by reason, then gaelp dlq replay --reason 'unknown task' once a worker "
    "knows it.",
)

TEXT_COLUMNS = 40  #: of a name in the table


class Column(StrEnum):
    """What they can be counted by."""

    REASON = "reason"
    QUEUE = "queue"
    TASK = "task"


Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `gaelp dlq list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="Every one there is.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Reason = Annotated[str, typer.Option(help="Only those whose reason begins so.")]
Queue = Annotated[str, typer.Option(help="Only those from queues whose name begins so.")]
Task = Annotated[str, typer.Option(help="Only those of tasks whose name begins so.")]


@dlq_app.command("list")
def list_(
    *,
    most: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 50,
    skip: Annotated[int, typer.Option(min=0, help="Leave out the newest so many.")] = 0,
    by: Annotated[Column | None, typer.Option(help="Count them by this instead.")] = None,
    reason: Reason = "",
    queue: Queue = "",
    task: Task = "",
    as_json: Json = False,
) -> None:
    """The newest dead letters, without their texts."""
    which = Which(reason, queue, task)
    if by is not None:
        _print_groups(dead_letters.grouped(app, lambda letter: getattr(letter, by), which), by, as_json)
        return
    letters = list(map(_facts, dead_letters.listed(app, most=most, skip=skip, which=which)))
    if as_json:
        _print_json(letters)
        return
    there = dead_letters.count(app)
    if not letters:
        out.print("No dead letter is like this." if there else "There are no dead letters.")
        return
    table = Table("id", "reason", "queue", "task", "bytes", "since", box=None)
    for letter in letters:
        names = (_plain(str(letter[name] or "-"), TEXT_COLUMNS) for name in ("id", "reason", "queue", "task"))
        table.add_row(*names, f"{letter['size_bytes']:,}", f"{max(0.0, time() - letter['since']):,.0f} s ago")
    out.print(table)
    if there > len(letters):
        out.print(f"{there:,} there are (--most, --skip; --by reason counts them).")


@dlq_app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="Of the dead letter, or of its task.")],
    *,
    message: Annotated[bool, typer.Option(help="The message itself: it may hold a prompt.")] = False,
    as_json: Json = False,
) -> None:
    """One dead letter; exit code 1 for an unknown id."""
    letter = dead_letters.find(app, letter_id)
    if letter is None:
        typer.echo(f"gaelp: there is no dead letter {_plain(letter_id)}.", err=True)
        raise typer.Exit(1)
    facts = _facts(letter)
    if as_json:
        _print_json(facts | (_in_json(letter.message) if message else {}))
        return
    facts |= letter.more
    for name, value in facts.items():
        out.print(f"[bold]{_plain(name)}[/] {_plain(str(value))}")
    if message:  # in a pipe as well: who wants the bytes asks for --json
        out.print(_printable(letter.message.decode(errors="backslashreplace")), markup=False)


@dlq_app.command()
def replay(
    ids: Ids = None, *, everything: All = False, reason: Reason = "", queue: Queue = "", task: Task = ""
) -> None:
    """Publish dead letters again, to the end of the queues they came from.

    What is refused for its form comes back; what was oversized, unless GAELP_MAX_MESSAGE_BYTES was raised.
    """
    chosen = dict(_chosen(ids, Which(reason, queue, task), everything))
    print(f"{dead_letters.replay(app, chosen):,} published again")
    back = Counter(why for why in chosen.values() if why)
    for why, number in back.most_common():
        note(f"{number:,} of them will come back: {_printable(why)}.")


@dlq_app.command()
def purge(
    ids: Ids = None,
    *,
    everything: All = False,
    yes: Yes = False,
    reason: Reason = "",
    queue: Queue = "",
    task: Task = "",
) -> None:
    """Throw dead letters away."""
    chosen = dict(_chosen(ids, Which(reason, queue, task), everything))
    if not ids and chosen and sys.stdin.isatty() and not yes:
        typer.confirm(f"Throw {len(chosen):,} dead letters away for good?", abort=True)
    print(f"{dead_letters.purge(app, chosen):,} thrown away")


def _chosen(ids: list[str] | None, which: Which, everything: bool) -> Iterator[tuple[str, str]]:
    """Their ids, each with the reason for which it would come back, else ''."""
    if ids and (everything or any(which)):
        raise typer.BadParameter("name the dead letters, or say which ones by options: not both")
    if not ids and not everything and not any(which):
        raise typer.BadParameter("name the dead letters, or say --all, --reason, --queue or --task")
    every = dead_letters.listed(app, most=sys.maxsize, which=which)
    found: Iterable[DeadLetter | None] = map(_find, ids) if ids else every
    for letter in found:
        if letter is not None:
            oversized = letter.reason == "oversized" and letter.size_bytes > app.settings.max_message_bytes
            yield letter.id, letter.reason if letter.comes_back or oversized else ""


def _find(letter_id: str) -> DeadLetter | None:
    letter = dead_letters.find(app, letter_id)
    if letter is None:
        note(f"there is no dead letter {_printable(letter_id)}.")
    return letter


def _print_groups(groups: Counter[str], by: Column, as_json: bool) -> None:
    if as_json:
        _print_json(groups)
        return
    table = Table(by.value, "dead letters", box=None)
    for name, number in groups.most_common():
        table.add_row(_plain(name or "-", 2 * TEXT_COLUMNS), f"{number:,}")
    out.print(table)


def _facts(letter: DeadLetter) -> dict[str, Any]:
    facts: dict[str, Any] = letter._asdict()
    del facts["message"], facts["place"], facts["more"]
    return facts


def _in_json(message: bytes) -> dict[str, str]:
    try:
        return {"message": message.decode()}
    except UnicodeDecodeError:
        return {"message_base64": base64.b64encode(message).decode()}


def _print_json(value: Any) -> None:
    """In ASCII: what is among it was written by anybody, and may be read on a terminal."""
    print(json.dumps(value, indent=2))


def _printable(text: str) -> str:
    """With everything that could move a terminal's cursor, or its mind, written out."""
    return "".join(
        mark if mark.isprintable() or mark == "\n" else mark.encode("unicode_escape").decode()
        for mark in text
    )


def _plain(text: str, columns: int | None = None) -> str:
    """The same for a table, on one line."""
    line = _printable(text).replace("\n", "\\n")
    return escape(line if columns is None or len(line) <= columns else f"{line[: columns - 1]}…")
