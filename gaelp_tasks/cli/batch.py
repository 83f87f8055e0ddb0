"""`gaelp batch`: thousands of requests from a file."""

import re
import sys
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli.asking import Asking, Tenant, opened, readable
from gaelp_tasks.cli.batch_progress import duration, lines, outcomes, waits, watching, writing
from gaelp_tasks.cli.batch_submission import STDIN, take_in
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.connections import worded
from gaelp_tasks.errors import BrokerUnavailable, Conflict
from gaelp_tasks.models.batch import Batch, BatchState, closed_until, eta_s
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours, InvalidSchedule
from gaelp_tasks.overview import live_nodes

if TYPE_CHECKING:
    from gaelp_tasks.db.batches import Batches
    from gaelp_tasks.db.database import Database

__all__ = ["batch_app"]

batch_app = typer.Typer(
    help="Thousands of requests from a file, worked off whenever there is room.",
    no_args_is_help=True,
    epilog='A line of the file is {"custom_id": "a", "prompt": "..."} with any argument of invoke_agent, or '
    "OpenAI's batch form. Example: ID=$(gaelp batch submit requests.jsonl), gaelp batch status $ID --wait, "
    "gaelp batch results $ID -o results.jsonl.",
)

LOOK_S = 0.5  #: between two looks while one waits
WITHIN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
LONGEST_S = 366 * 86_400.0


class Low(StrEnum):
    """The tiers of batches."""

    BATCH = Tier.BATCH.value
    BACKGROUND = Tier.BACKGROUND.value


Id = Annotated[str, typer.Argument(metavar="ID", help="Of the batch, or how it begins.", callback=readable)]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until it is over; Ctrl-C leaves it running.")]


def _opened(tenant: str) -> "AbstractContextManager[Asking[Batches]]":
    """The batches of a tenant."""

    def batches(db: "Database") -> "Batches":
        from gaelp_tasks.db.batches import Batches  # noqa: PLC0415  SQLAlchemy takes a while to import

        return Batches(db, tenant)

    return opened(batches)


def _find(ask: "Asking[Batches]", beginning: str) -> Batch:
    """The batch whose id begins so. Exit code 1 where there is none, or more than one."""
    found = ask(lambda batches: batches.find(beginning))
    if len(found) == 1:
        return found[0]
    note(f"{'several batches begin' if found else 'no batch begins'} with {beginning!r}.")
    raise typer.Exit(1)


def _now() -> datetime:
    return datetime.now(UTC)


def _lately(ask: "Asking[Batches]", batch: Batch) -> list[datetime]:
    """When its last lines ended; nothing where no pace can be told."""
    return ask(lambda batches: batches.lately(batch.id)) if batch.state is BatchState.IN_PROGRESS else []


def _facts(ask: "Asking[Batches]", batch: Batch) -> dict[str, Any]:
    return batch.facts(_now(), _lately(ask, batch))


@batch_app.command()
def submit(  # noqa: PLR0913  one option each
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL; '-' reads it from standard input.")],
    *,
    tier: Annotated[Low, typer.Option(help="How urgent.")] = Low.BATCH,
    model: Annotated[
        str | None, typer.Option(help="Model of lines that name none; else the node's default.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Agent of lines that name none; else chat.")] = None,
    within: Annotated[
        str | None,
        typer.Option(help="Stop after 90s, 30m, 24h or 7d: what has not ended by then becomes an error."),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            help="Begin lines then only: '22:00-06:00', 'mon-fri 22:00-06:00'; may be repeated. What is in "
            "the queue as it closes still runs."
        ),
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Time zone of --window; UTC if not given.")] = None,
    wait: Wait = False,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Take in a file of requests and have it worked off; prints the id of the batch.

    A line that cannot be read is reported with its number and harms no other.

    \b
    gaelp batch submit requests.jsonl --model llama3.2:3b --within 24h
    gaelp batch submit requests.jsonl --window 22:00-06:00 --zone Europe/Berlin
    jq -c '{custom_id: .id, prompt: .text}' rows.jsonl \\
        | gaelp batch submit - --wait
    """  # noqa: D301  \b keeps the lines for click
    within_s = None if within is None else _seconds(within)
    hours = _hours(window, zone)
    if str(file) != STDIN and (file.is_dir() or not file.exists()):  # a pipe is a file, too
        raise typer.BadParameter(f"there is no file {file}", param_hint="FILE")
    with worded(app.settings):  # before a long file is read
        app.redis.ping()
    defaults = Defaults(tier=Tier(tier), model=model, agent=agent)
    with _opened(tenant) as ask:
        batch = take_in(ask, file, defaults, within_s, hours)
        if batch.state is BatchState.IN_PROGRESS:
            _call(batch, 0)
            _warn_without_worker()
            if (until := closed_until(batch, _now())) is not None:
                note(f"It waits for {waits(batch, until)}.")
        if wait:
            batch = _wait(ask, batch)
        facts = _facts(ask, batch) if as_json else {}
    if as_json:
        print_json(facts)
    else:
        print(batch.id)
    _tell_end(batch, waited=wait)


def _warn_without_worker() -> None:
    if not live_nodes(app):
        note("No worker is running: the batch waits until one is (`gaelp worker`, or `make up`).")


def _call(batch: Batch, ticket: int) -> None:
    """Have a worker begin; where Redis has gone meanwhile, beat will."""
    from gaelp_tasks.tasks.batch import call_for  # noqa: PLC0415  Celery takes a while to import

    try:
        call_for(batch.id, batch.tenant, ticket)
    except BrokerUnavailable as error:
        note(f"{error} The batch is kept: `gaelp beat` has it begun once Redis is there.")


@batch_app.command()
def status(batch_id: Id, *, wait: Wait = False, tenant: Tenant = "", as_json: Json = False) -> None:
    """How far a batch is, and how long it will take; exit code 1 for an unknown id.

    With --wait the exit code tells the end: 0 completed, 1 expired, cancelled or failed.

    Example: gaelp batch status batch_3f2a --wait
    """
    with _opened(tenant) as ask:
        batch = _find(ask, batch_id)
        if wait:
            batch = _wait(ask, batch)
        lately = _lately(ask, batch)
    if as_json:
        print_json(batch.facts(_now(), lately))
    else:
        for name, value in lines(batch, lately):
            out.print(f"[bold]{name}[/] {escape(value)}")
    if wait:
        _tell_end(batch, waited=True)


@batch_app.command()
def cancel(batch_id: Id, *, tenant: Tenant = "", as_json: Json = False) -> None:
    """Stop a batch: what has ended is kept, what runs is stopped, the rest never runs.

    Example: gaelp batch cancel batch_3f2a
    """
    from gaelp_tasks.services.batches import cancel as stop  # noqa: PLC0415  SQLAlchemy, see _opened

    with _opened(tenant) as ask:
        batch = _find(ask, batch_id)
        try:
            ticket = ask(lambda batches: stop(batches, batch, now=_now()))
        except Conflict as error:
            note(str(error))
            raise typer.Exit(1) from None
        if ticket is not None:
            _call(batch, ticket)
        batch = _find(ask, batch.id)
    if as_json:
        print_json(batch.facts(_now()))
    else:
        print(f"{batch.id} is {batch.state}; `gaelp batch status` tells what became of it.")


@batch_app.command()
def results(
    batch_id: Id,
    *,
    errors: Annotated[bool, typer.Option("--errors", help="The lines without a result instead.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="A file instead of standard output.")
    ] = None,
    tenant: Tenant = "",
) -> None:
    """The results as JSONL, in the order of the file, each in the form in which its line asked.

    Every custom_id is in the results or in the errors, once. While a batch
    runs they are those so far.

    \b
    gaelp batch results batch_3f2a -o results.jsonl
    gaelp batch results batch_3f2a --errors | jq -r .error.message
    """  # noqa: D301  \b keeps the lines for click
    from gaelp_tasks.services.batches import write_out  # noqa: PLC0415  SQLAlchemy, see _opened

    with _opened(tenant) as ask:
        batch = _find(ask, batch_id)
        if output is None:
            count = ask(lambda batches: write_out(batches, batch, sys.stdout, errors=errors))
            sys.stdout.flush()
        else:
            part = output.with_name(f"{output.name}.part")
            total = batch.counts.errors if errors else batch.counts.done
            with part.open("w", encoding="utf-8", newline="\n") as file, writing(total) as tell:
                count = ask(lambda batches: write_out(batches, batch, file, errors=errors, tell=tell))
            part.replace(output)
        batch = _find(ask, batch.id)
    what = "errors" if errors else "results"
    if output is not None:
        note(f"{count:,} {what} in {output}.")
    if not batch.is_over:
        note(f"The batch is {batch.state}: these are the {what} so far.")
    elif not errors and batch.counts.errors:
        note(f"{batch.counts.errors:,} lines have no result: gaelp batch results {batch.id} --errors")


@batch_app.command("list")
def list_(
    *,
    most: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 20,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """The newest batches.

    Example: gaelp batch list --json | jq -r '.[] | select(.state == "in_progress") | .id'
    """
    with _opened(tenant) as ask:
        found = ask(lambda batches: batches.newest(most))
        lately = {batch.id: _lately(ask, batch) for batch in found}
    now = _now()
    if as_json:
        print_json([batch.facts(now, lately[batch.id]) for batch in found])
        return
    if not found:
        out.print("There are no batches: gaelp batch submit FILE.jsonl")
        return
    table = Table("id", "state", "done", "errors", "lines", "left", "file", box=None, pad_edge=False)
    for batch in found:
        counts = batch.counts
        numbers = (f"{number:,}" for number in (counts.done, counts.errors, counts.total))
        left = "-" if batch.is_over else duration(eta_s(batch, now, lately[batch.id]))
        if closed_until(batch, now) is not None:
            left = "waits"
        table.add_row(batch.id, batch.state.value, *numbers, left, escape(batch.name or "-"))
    out.print(table)


@batch_app.command()
def remove(
    batch_id: Id,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    tenant: Tenant = "",
) -> None:
    """Delete a batch that is over, with what it asked and what was answered.

    Example: gaelp batch remove batch_3f2a --yes
    """
    with _opened(tenant) as ask:
        batch = _find(ask, batch_id)
        if sys.stdin.isatty() and not yes:
            typer.confirm(f"Delete {batch.id} and its {batch.counts.total:,} lines for good?", abort=True)
        try:
            is_gone = ask(lambda batches: batches.remove(batch.id))
        except Conflict as error:
            note(str(error))
            raise typer.Exit(1) from None
        if not is_gone:
            note(f"It is {batch.state}: cancel it first.")
            raise typer.Exit(1)
    print(f"{batch.id} is gone.")


def _seconds(text: str) -> float:
    found = WITHIN.fullmatch(text.strip())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_S:
        raise typer.BadParameter("write it as 90s, 30m, 24h or 7d, a year at most", param_hint="--within")
    return seconds


def _hours(windows: list[str] | None, zone: str | None) -> Hours | None:
    if not windows:
        if zone is not None:
            raise typer.BadParameter("it is the zone of --window", param_hint="--zone")
        return None
    try:
        return Hours.parse(windows, zone or "UTC")
    except InvalidSchedule as error:
        raise typer.BadParameter(str(error), param_hint="--window") from None


def _tell_end(batch: Batch, *, waited: bool) -> None:
    """Exit code 1 where it did not come to a good end."""
    if batch.state is BatchState.FAILED:
        note(f"The batch failed: {batch.trouble}")
        raise typer.Exit(1)
    if not waited:
        return
    note(f"{batch.state}: {outcomes(batch)}. gaelp batch results {batch.id}")
    if batch.state is not BatchState.COMPLETED:
        raise typer.Exit(1)


def _wait(ask: "Asking[Batches]", batch: Batch) -> Batch:
    """Until it is over; Ctrl-C leaves it running."""
    try:
        with watching() as tell:
            while not batch.is_over:
                tell(batch, _lately(ask, batch))
                sleep(LOOK_S)
                batch = _find(ask, batch.id)
            tell(batch, ())
    except KeyboardInterrupt:
        note(
            f"It goes on without you: gaelp batch status {batch.id} --wait, or gaelp batch cancel {batch.id}."
        )
        raise typer.Exit(130) from None
    return batch
