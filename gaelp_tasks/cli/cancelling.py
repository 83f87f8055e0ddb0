"""`gaelp cancel`: by id, or many at once by what they are."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gaelp_tasks import app, invoke_agent, roundup
from gaelp_tasks.cli.output import Json, note, print_json
from gaelp_tasks.cli.running import unknown
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.overview import WHOLE, AmbiguousId, describe, whole_id
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.roundup import STATES, Filter

__all__ = ["cancel"]

EACH = 10_000  #: a line for so many, where there is no terminal

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID...", help="Ids of invocations, or how they begin.")
]


def cancel(  # noqa: PLR0913  one option each
    ids: Ids = None,
    *,
    tier: Annotated[list[Tier] | None, typer.Option(help="Those of this tier; may be repeated.")] = None,
    agent: Annotated[str | None, typer.Option(help="Those for this agent.")] = None,
    model: Annotated[str | None, typer.Option(help="Those that name this model.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Those of this tenant.")] = None,
    queue: Annotated[str | None, typer.Option(help="Those in, or taken from, this queue.")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Those published longer ago.")
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help=f"Those that are {', '.join(STATES)}; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every one there is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell how many it would be.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Stop invocations, queued or running; their partial text is kept. Exit code 1 for an unknown id.

    Example: gaelp cancel --tier background --agent research --older-than 3600
    """
    if strange := set(state or ()) - set(STATES):
        raise typer.BadParameter(f"{min(strange)} is none of {', '.join(STATES)}", param_hint="--state")
    limits = (tier, agent, model, tenant, queue, older_than, state)
    many = everything or any(value is not None and value != [] for value in limits)
    if bool(ids) == many:
        raise typer.BadParameter("name invocations, or say which by options, or --all")
    if ids:
        _cancel_ids(ids, as_json=as_json)
        return
    wanted = Filter(
        tiers=frozenset(one.value for one in tier or ()),
        agent=agent,
        model=model,
        tenant=tenant,
        queue=queue,
        older_than_s=older_than,
        states=frozenset(state or STATES),
    )
    _cancel_many(wanted, dry_run=dry_run, yes=yes, as_json=as_json)


def _cancel_many(wanted: Filter, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    if dry_run or not yes:
        there = roundup.count(app, wanted)
        if dry_run:
            _tell(there, "would be cancelled", as_json=as_json)
            return
        if not there.total():
            _tell(there, "cancelled", as_json=as_json)
            return
        note(f"{_numbers(there)} would be cancelled.")
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody is here to ask: say --yes", param_hint="--yes")
        typer.confirm("Cancel them?", abort=True, err=True)
    with _progress() as progress:
        asked = roundup.cancel(app, wanted, progress)
    _tell(asked, "asked to stop", as_json=as_json)


def _tell(found: Counter[str], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"cancelled": found.total(), **{state: found[state] for state in STATES}})
    else:
        print(f"{_numbers(found)} {what}.")


def _numbers(found: Counter[str]) -> str:
    parts = ", ".join(f"{found[state]:,} {state}" for state in STATES if found[state])
    return f"{found.total():,} ({parts})" if parts else "None"


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Tells how many so far: live on a terminal, by lines elsewhere."""
    if sys.stderr.isatty():
        columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} asked to stop"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda number: bar.update(task, completed=number)
        return
    told = 0

    def line(number: int) -> None:
        nonlocal told
        if number // EACH > told:
            told = number // EACH
            note(f"{number:,} asked to stop so far.")

    yield line


def _cancel_ids(ids: list[str], *, as_json: bool) -> None:
    asked, troubles = [], []
    for given in ids:
        try:
            whole = whole_id(app, given)
        except AmbiguousId as error:
            troubles.append(str(error))
            continue
        handle: InvocationHandle = invoke_agent.AsyncResult(whole)
        handle.cancel()
        # a whole id may be on its way here; what is shorter may be somebody's own, so its wish is left, too
        if len(whole) < WHOLE and unknown(describe(app, whole)):
            troubles.append(f"Nobody here knows {given}; should it still come, it will be cancelled.")
        else:
            asked.append(whole)
    for trouble in troubles:
        note(trouble)
    if as_json:
        print_json({"cancelled": asked})
    elif asked:
        print(f"Asked {len(asked)} to stop; `gaelp show ID` tells what became of it.")
    if troubles:
        raise typer.Exit(1)
