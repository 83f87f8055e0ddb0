"""`gaelp dlq`: the messages that could not run."""

import sys
from time import time
from typing import Annotated

import typer
from rich.table import Table

from gaelp_tasks import app, dead_letters
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.dead_letters import DeadLetter

__all__ = ["dlq_app"]

dlq_app = typer.Typer(
    help="Dead letters: messages that could not run, kept with their reason.",
    no_args_is_help=True,
    epilog="Example: gaelp dlq list, then gaelp dlq replay --all once what was wrong is mended.",
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `gaelp dlq list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="Every one there is.")]


@dlq_app.command("list")
def list_(
    *, most: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 50, as_json: Json = False
) -> None:
    """The newest dead letters, without their texts."""
    letters = list(dead_letters.listed(app, most=most))
    if as_json:
        print_json([_facts(letter) for letter in letters])
        return
    if not letters:
        out.print("There are no dead letters.")
        return
    table = Table("id", "reason", "queue", "task", "bytes", "since", box=None)
    for letter in letters:
        row = (letter.id, letter.reason, letter.queue, letter.task or "-", f"{letter.size_bytes:,}")
        table.add_row(*row, f"{max(0.0, time() - letter.since):,.0f} s ago")
    out.print(table)
    if (there := dead_letters.count(app)) > len(letters):
        out.print(f"{there - len(letters):,} older ones are not shown (--most).")


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
        typer.echo(f"gaelp: there is no dead letter {letter_id}.", err=True)
        raise typer.Exit(1)
    facts = _facts(letter) | ({"message": letter.message.decode(errors="replace")} if message else {})
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        out.print(f"[bold]{name}[/] {value}", highlight=False, markup=name != "message")


@dlq_app.command()
def replay(ids: Ids = None, *, everything: All = False) -> None:
    """Publish dead letters again, to the end of the queues they came from."""
    print(f"{dead_letters.replay(app, _chosen(ids, everything)):,} published again")


@dlq_app.command()
def purge(ids: Ids = None, *, everything: All = False) -> None:
    """Throw dead letters away."""
    print(f"{dead_letters.purge(app, _chosen(ids, everything)):,} thrown away")


def _facts(letter: DeadLetter) -> dict[str, object]:
    facts: dict[str, object] = letter._asdict()
    del facts["message"]
    return facts


def _chosen(ids: list[str] | None, everything: bool) -> list[str]:
    if everything:
        return [letter.id for letter in dead_letters.listed(app, most=sys.maxsize)]
    if not ids:
        raise typer.BadParameter("name the dead letters, or say --all")
    return [found.id if (found := dead_letters.find(app, one)) else one for one in ids]
