"""`gaelp schedule`: what beat publishes, and when."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli.asking import Asking, Tenant, opened, readable
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.cli.schedule_options import built, with_options
from gaelp_tasks.cli.schedule_words import (
    facts_of,
    last_of,
    local,
    next_of,
    printable,
    state_of,
    upcoming,
    what_of,
)
from gaelp_tasks.connections import unavailable, worded
from gaelp_tasks.models.schedule import InvalidSchedule
from gaelp_tasks.tasks.scheduled import publish

if TYPE_CHECKING:
    from gaelp_tasks.db.database import Database
    from gaelp_tasks.db.schedules import Kept, Schedules

__all__ = ["schedule_app"]

schedule_app = typer.Typer(
    help="What beat publishes, and when; a change counts from its next tick, within a second.",
    no_args_is_help=True,
    epilog='Example: gaelp schedule add nightly --cron "0 2 * * *" --zone Europe/Berlin --prompt "Sum up the '
    'day." --tier batch, then gaelp schedule list. `gaelp beat` publishes what is due: run two of them, and '
    "one takes over from the other.",
)

T = TypeVar("T")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Of the schedule, as `list` shows it.", callback=readable)
]


@contextmanager
def _opened(tenant: str) -> "Iterator[Asking[Schedules]]":
    """The schedules of a tenant. Raises BadParameter where they refuse what is asked of them."""

    def schedules(db: "Database") -> "Schedules":
        from gaelp_tasks.db.schedules import Schedules  # noqa: PLC0415  SQLAlchemy takes a while to import

        return Schedules(db, tenant)

    with opened(schedules) as ask:
        try:
            yield ask
        except InvalidSchedule as error:
            raise typer.BadParameter(str(error)) from None


def _now() -> datetime:
    return datetime.now(UTC)


@schedule_app.command("list")
def list_(*, tenant: Tenant = "", as_json: Json = False) -> None:
    """Every schedule with its next due time.

    Example: gaelp schedule list --json | jq '.[] | select(.paused) | .name'
    """
    with _opened(tenant) as ask:
        found = ask(lambda schedules: schedules.listed())
    if as_json:
        print_json([facts_of(kept, 1) for kept in found])
        return
    if not found:
        out.print('There are no schedules: gaelp schedule add NAME --cron "0 2 * * *" --prompt "..."')
        return
    table = Table("name", "when", "what", "next", "last", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for kept in found:
        row = (kept.schedule.name, kept.schedule.when, what_of(kept.schedule), next_of(kept), last_of(kept))
        table.add_row(*map(escape, row))
    out.print(table)


@schedule_app.command()
def show(
    name: Name,
    *,
    count: Annotated[int, typer.Option("--next", min=0, max=1000, help="How many due times to show.")] = 5,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """One schedule with its next due times, and its prompt.

    Example: gaelp schedule show nightly --next 10
    """
    with _opened(tenant) as ask:
        kept = _there(ask(lambda schedules: schedules.find(name)), name)
    if as_json:
        print_json(facts_of(kept, count))
        return
    facts = {key: value for key, value in facts_of(kept, 0).items() if value not in (None, "", [], {})}
    facts |= {"when": kept.schedule.when, "next": [], "last": last_of(kept)}
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if key != "next":
            out.print(f"[bold]{escape(key)}[/] {escape(printable(text))}")
    state = state_of(kept)
    out.print(f"[bold]next[/] {escape(state)}" if state else "[bold]next[/]")
    for due in upcoming(kept, count):
        out.print(f"  {escape(local(due, kept.schedule))}")


@schedule_app.command()
@with_options
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new one; unique for the tenant.")],
    *,
    paused: Annotated[bool, typer.Option("--paused", help="Nothing is published until `resume`.")] = False,
    tenant: Tenant = "",
    as_json: Json = False,
    **given: Any,
) -> None:
    """Have a prompt or a task published by the clock.

    \b
    gaelp schedule add nightly --cron "0 2 * * *" --zone Europe/Berlin \\
        --prompt "Sum up the day." --tier batch
    gaelp schedule add news --every 30m --window "mon-fri 08:00-18:00" \\
        --prompt - < prompt.txt
    gaelp schedule add reindex --cron @daily --task shop.reindex \\
        --args '["all"]' --queue celery
    gaelp schedule add toast --at "2026-12-31 23:59" --zone Asia/Tokyo \\
        --prompt "Write a toast."
    gaelp schedule add digest --every 1h --only-when-idle \\
        --overlap queue --expires 6h --prompt "What is new?"
    """  # noqa: D301  \b keeps the lines for click
    schedule = built({"name": name, "paused": paused}, given)
    with _opened(tenant) as ask:
        kept = ask(lambda schedules: schedules.add(schedule, _now()))
    _say(kept, "added", as_json)
    _warn_without_beat()


@schedule_app.command()
@with_options
def edit(
    name: Name,
    *,
    rename: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    tenant: Tenant = "",
    as_json: Json = False,
    **given: Any,
) -> None:
    """Change what is given and leave the rest; '' takes a start, end, window, expiry, queue or model away.

    New times count from now: what was due by the old ones and not published yet is dropped.

    \b
    gaelp schedule edit nightly --cron "30 3 * * *"
    gaelp schedule edit news --window "" --expires ""
    """  # noqa: D301  \b keeps the lines for click
    with _opened(tenant) as ask:
        kept = _there(ask(lambda schedules: schedules.find(name)), name)
        before: dict[str, Any] = kept.schedule.model_dump()
        schedule = built(before | {"name": rename or name}, given)
        kept = _there(ask(lambda schedules: schedules.change(name, schedule, _now())), name)
    _say(kept, "changed", as_json)


@schedule_app.command()
def pause(name: Name, *, tenant: Tenant = "", as_json: Json = False) -> None:
    """Have nothing more of it published; what was goes on.

    Example: gaelp schedule pause nightly
    """
    _pause(name, tenant, as_json, paused=True)


@schedule_app.command()
def resume(name: Name, *, tenant: Tenant = "", as_json: Json = False) -> None:
    """Go on with a paused one; what was due in between is not made up for.

    Example: gaelp schedule resume nightly
    """
    _pause(name, tenant, as_json, paused=False)
    _warn_without_beat()


def _pause(name: str, tenant: str, as_json: bool, *, paused: bool) -> None:
    with _opened(tenant) as ask:
        kept = _there(ask(lambda schedules: schedules.pause(name, _now(), paused=paused)), name)
    _say(kept, "paused" if paused else "resumed", as_json)


@schedule_app.command()
def remove(
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Forget it; what it has published goes on.

    Example: gaelp schedule remove nightly
    """
    if sys.stdin.isatty() and not yes:
        typer.confirm(f"Remove schedule {name!r} for good?", abort=True)
    with _opened(tenant) as ask:
        removed = _there(ask(lambda schedules: schedules.remove(name)), name)
    with suppress(*unavailable):  # then one field too many is left there
        app.redis.hdel(app.keys.beat_published, str(removed))
    if as_json:
        print_json({"name": name, "id": str(removed)})
    else:
        out.print(escape(f"{name}: removed"))


@schedule_app.command()
def run(name: Name, *, tenant: Tenant = "", as_json: Json = False) -> None:
    """Publish a run at once, paused or not, beside those that are due; prints its id.

    Example: gaelp attach $(gaelp schedule run nightly)
    """
    task_id = str(uuid4())
    with _opened(tenant) as ask:
        kept = _there(ask(lambda schedules: schedules.find(name)), name)
        with worded(app.settings):
            app.redis.ping()
        publish(app, kept.schedule, tenant, task_id, _now())
        ask(lambda schedules: schedules.ran(name, task_id))
    if as_json:
        print_json({"name": name, "id": task_id})
    else:
        print(task_id)


def _there(found: T | None, name: str) -> T:
    if found is None:
        typer.echo(f"gaelp: there is no schedule {name!r}; `gaelp schedule list` shows them.", err=True)
        raise typer.Exit(1)
    return found


def _say(kept: "Kept", done: str, as_json: bool) -> None:
    if as_json:
        print_json(facts_of(kept, 1))
    else:
        out.print(escape(f"{kept.schedule.name}: {done}, next: {next_of(kept)}"))


def _warn_without_beat() -> None:
    with suppress(*unavailable):
        if not app.redis.exists(app.keys.beat):
            note("no beat is running: `gaelp beat` publishes what is due.")
