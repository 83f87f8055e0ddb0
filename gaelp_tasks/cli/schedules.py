"""`gaelp schedule`: what beat publishes, and when."""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import uuid4
from zoneinfo import ZoneInfo

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.connections import unavailable, worded
from gaelp_tasks.due import times
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import INVOKE, InvalidSchedule, Missed, Overlap, Schedule, Window
from gaelp_tasks.tasks.scheduled import check, publish

if TYPE_CHECKING:
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
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
TEXT_COLUMNS = 40  #: of a prompt
TIMES = ("cron", "interval_s", "at")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the schedule, as `list` shows it.")]
Tenant = Annotated[str, typer.Option(help="Whose it is; nobody's by name if not given.")]
Cron = Annotated[
    str | None, typer.Option(help="Five fields as in a crontab, '0 2 * * *', or @hourly, @daily, @weekly.")
]
Zone = Annotated[
    str | None, typer.Option(help="Time zone of --cron, --window and times without one; UTC if not given.")
]
Every = Annotated[str | None, typer.Option(help="An interval instead: 90, 30s, 10m, 2h or 1d.")]
At = Annotated[str | None, typer.Option(help="Once instead: '2026-12-24 18:00'.")]
Prompt = Annotated[str | None, typer.Option(help="What to ask an agent; '-' reads it from standard input.")]
Agent = Annotated[str | None, typer.Option(help="Which agent answers; chat if not given.")]
Model = Annotated[str | None, typer.Option(help="Model; the node's default if not given.")]
Priority = Annotated[int | None, typer.Option(help="1 to 10 within the tier, 10 first.")]
Task = Annotated[str | None, typer.Option(help="Another task than an invocation, by its Celery name.")]
Args = Annotated[str | None, typer.Option("--args", help='Its arguments as JSON, ["a", 1].')]
Kwargs = Annotated[str | None, typer.Option("--kwargs", help='Named ones as JSON, {"temperature": 0}.')]
TierName = Annotated[Tier | None, typer.Option(help="How urgent; batch for invocations if not given.")]
Queue = Annotated[str | None, typer.Option(help="A queue in place of the tier.")]
Start = Annotated[str | None, typer.Option(help="Nothing is due before; intervals count from it.")]
End = Annotated[str | None, typer.Option(help="Nothing is due after.")]
Windows = Annotated[
    list[str] | None,
    typer.Option("--window", help="Due then only: '22:00-06:00', 'mon-fri 22:00-06:00'; may be repeated."),
]
Idle = Annotated[
    bool | None,
    typer.Option("--only-when-idle/--whenever-due", help="Wait while a higher tier has work."),
]
MissedRuns = Annotated[
    Missed | None, typer.Option(help="Runs missed while no beat lived: none, one for all, or each. [once]")
]
Overlaps = Annotated[
    Overlap | None,
    typer.Option(help="Due while the run before is not over: leave out, wait, cancel the old one. [skip]"),
]
Expires = Annotated[
    str | None, typer.Option(help="A run that has not begun so long after its time is dropped: 30m.")
]


class _Asking:
    """Runs questions to a tenant's schedules."""

    def __init__(self, loop: asyncio.Runner, schedules: "Schedules") -> None:
        self._loop = loop
        self._schedules = schedules

    def __call__(self, ask: Callable[["Schedules"], Coroutine[Any, Any, T]]) -> T:
        return self._loop.run(ask(self._schedules))


@contextmanager
def _opened(tenant: str) -> Iterator[_Asking]:
    """The schedules of a tenant. Raises BadParameter where they refuse what is asked of them."""
    from gaelp_tasks.db.database import Database  # noqa: PLC0415  SQLAlchemy takes a while to import
    from gaelp_tasks.db.schedules import Schedules  # noqa: PLC0415

    with asyncio.Runner() as loop:
        db = Database(app.settings.sql_url)
        try:
            loop.run(db.migrate())
            yield _Asking(loop, Schedules(db, tenant))
        except InvalidSchedule as error:
            raise typer.BadParameter(str(error)) from None
        finally:
            loop.run(db.close())


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
        print_json([_facts(kept, 1) for kept in found])
        return
    if not found:
        out.print('There are no schedules: gaelp schedule add NAME --cron "0 2 * * *" --prompt "..."')
        return
    table = Table("name", "when", "what", "next", "last", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for kept in found:
        row = (kept.schedule.name, kept.schedule.when, _what(kept.schedule), _next(kept), _last(kept))
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
        print_json(_facts(kept, count))
        return
    facts = {key: value for key, value in _facts(kept, 0).items() if value not in (None, "", [], {})}
    facts |= {"when": kept.schedule.when, "next": [], "last": _last(kept)}
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if key != "next":
            out.print(f"[bold]{escape(key)}[/] {escape(_printable(text))}")
    state = _state(kept)
    out.print(f"[bold]next[/] {escape(state)}" if state else "[bold]next[/]")
    for due in _upcoming(kept, count):
        out.print(f"  {escape(_local(due, kept.schedule))}")


@schedule_app.command()
def add(  # noqa: PLR0913  one option each
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new one; unique for the tenant.")],
    *,
    cron: Cron = None,
    zone: Zone = None,
    every: Every = None,
    at: At = None,
    prompt: Prompt = None,
    agent: Agent = None,
    model: Model = None,
    priority: Priority = None,
    task: Task = None,
    args: Args = None,
    kwargs: Kwargs = None,
    tier: TierName = None,
    queue: Queue = None,
    start: Start = None,
    end: End = None,
    window: Windows = None,
    only_when_idle: Idle = None,
    missed: MissedRuns = None,
    overlap: Overlaps = None,
    expires: Expires = None,
    paused: Annotated[bool, typer.Option("--paused", help="Nothing is published until `resume`.")] = False,
    tenant: Tenant = "",
    as_json: Json = False,
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
    given = dict(locals())
    schedule = _built({"name": name, "paused": paused}, given)
    with _opened(tenant) as ask:
        kept = ask(lambda schedules: schedules.add(schedule, _now()))
    _say(kept, "added", as_json)
    _warn_without_beat()


@schedule_app.command()
def edit(  # noqa: PLR0913  one option each
    name: Name,
    *,
    rename: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    cron: Cron = None,
    zone: Zone = None,
    every: Every = None,
    at: At = None,
    prompt: Prompt = None,
    agent: Agent = None,
    model: Model = None,
    priority: Priority = None,
    task: Task = None,
    args: Args = None,
    kwargs: Kwargs = None,
    tier: TierName = None,
    queue: Queue = None,
    start: Start = None,
    end: End = None,
    window: Windows = None,
    only_when_idle: Idle = None,
    missed: MissedRuns = None,
    overlap: Overlaps = None,
    expires: Expires = None,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Change what is given and leave the rest; '' takes a start, end, window, expiry, queue or model away.

    New times count from now: what was due by the old ones and not published yet is dropped.

    \b
    gaelp schedule edit nightly --cron "30 3 * * *"
    gaelp schedule edit news --window "" --expires ""
    """  # noqa: D301  \b keeps the lines for click
    given = dict(locals())
    with _opened(tenant) as ask:
        kept = _there(ask(lambda schedules: schedules.find(name)), name)
        before: dict[str, Any] = kept.schedule.model_dump()
        schedule = _built(before | {"name": rename or name}, given)
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


def _built(base: Mapping[str, Any], given: Mapping[str, Any]) -> Schedule:
    """A schedule from options over what was there. Raises BadParameter, InvalidInvocation."""
    new = dict(base) | _times_given(base, given)
    task = given["task"]
    if task is not None and task != base.get("task", INVOKE):
        new |= {"task": task, "args": (), "kwargs": {}}
    named = dict(new.get("kwargs") or {}) if given["kwargs"] is None else _json(given, "kwargs", dict)
    named |= {key: given[key] for key in ("agent", "model", "priority") if given[key] is not None}
    if given["prompt"] is not None:
        named["prompt"] = sys.stdin.read() if given["prompt"] == "-" else given["prompt"]
        named.pop("messages", None)
    new["kwargs"] = {key: value for key, value in named.items() if (key, value) != ("model", "")}
    if given["args"] is not None:
        new["args"] = _json(given, "args", list)
    new |= {
        key: given[key] for key in ("only_when_idle", "missed", "overlap", "tier") if given[key] is not None
    }
    if given["tier"] is not None:
        new["queue"] = None
    if given["queue"] is not None:
        new |= {"queue": given["queue"] or None} | ({"tier": None} if given["queue"] else {})
    if given["expires"] is not None:
        new["expires_s"] = _seconds("expires", given["expires"]) if given["expires"] else None
    try:
        schedule = Schedule.parse(new)
    except InvalidSchedule as error:
        raise typer.BadParameter(str(error)) from None
    check(app, schedule)
    return schedule


def _times_given(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say about when it is due."""
    new: dict[str, Any] = {}
    zone = given["zone"]
    if zone is not None:
        new["zone"] = zone
    place = zone or base.get("zone") or "UTC"
    asked = {
        "cron": given["cron"],
        "interval_s": None if given["every"] is None else _seconds("every", given["every"]),
        "at": None if given["at"] is None else _moment("at", given["at"], place),
    }
    count = sum(value is not None for value in asked.values())
    if count > 1 or (count == 0 and not any(base.get(key) is not None for key in TIMES)):
        raise typer.BadParameter("say when by one of --cron, --every and --at.")
    if count:
        new |= asked
    if asked["interval_s"] and not base.get("start"):  # else it would count from 1970
        new["start"] = _now().replace(microsecond=0)
    for key in ("start", "end"):
        if given[key] is not None:
            new[key] = _moment(key, given[key], place) if given[key] else None
    if given["window"] is not None:
        try:
            new["windows"] = tuple(Window.parse(text) for text in given["window"] if text)
        except InvalidSchedule as error:
            raise typer.BadParameter(str(error)) from None
    return new


def _json(given: Mapping[str, Any], option: str, kind: type) -> Any:
    try:
        value = json.loads(given[option])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        form = "an object" if kind is dict else "a list"
        raise typer.BadParameter(f"--{option}: give {form} of JSON.")
    return value


def _seconds(option: str, text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if not found:
        raise typer.BadParameter(f"--{option}: {text!r} is no length of time; write 90, 30s, 10m, 2h or 1d.")
    return float(found[1]) * SECONDS[found[2]]


def _moment(option: str, text: str, zone: str) -> datetime:
    """A time; one without a zone of its own is in `zone`."""
    try:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
    except (OSError, LookupError, ValueError):
        raise typer.BadParameter(
            f"--{option}: {text!r} is no time; write one as '2026-12-24 18:00', or with +01:00 behind it "
            "(and --zone as Europe/Berlin)."
        ) from None


def _there(found: T | None, name: str) -> T:
    if found is None:
        typer.echo(f"gaelp: there is no schedule {name!r}; `gaelp schedule list` shows them.", err=True)
        raise typer.Exit(1)
    return found


def _say(kept: "Kept", done: str, as_json: bool) -> None:
    if as_json:
        print_json(_facts(kept, 1))
    else:
        out.print(escape(f"{kept.schedule.name}: {done}, next: {_next(kept)}"))


def _warn_without_beat() -> None:
    with suppress(*unavailable):
        if not app.redis.exists(app.keys.beat):
            note("no beat is running: `gaelp beat` publishes what is due.")


def _upcoming(kept: "Kept", most: int) -> list[datetime]:
    since = max(kept.standing.until, _now())
    return list(islice(times(kept.schedule, since), most))


def _facts(kept: "Kept", most: int) -> dict[str, Any]:
    """Everything as JSON values, with at most so many due times."""
    return {
        **kept.schedule.model_dump(mode="json"),
        "id": str(kept.id),
        "tenant": kept.tenant,
        "created_at": kept.created_at.isoformat(),
        "next": [] if kept.schedule.paused else [due.isoformat() for due in _upcoming(kept, most)],
        "waiting_since": kept.standing.waiting and kept.standing.waiting.isoformat(),
        "last_due": kept.last_due and kept.last_due.isoformat(),
        "last_task": kept.last_task,
    }


def _state(kept: "Kept") -> str:
    """Why its next due time is not simply the next; '' where it is."""
    if kept.schedule.paused:
        return "paused"
    if kept.standing.waiting:
        return f"waits since {_local(kept.standing.waiting, kept.schedule)}"
    return "" if kept.next_due else "over"


def _next(kept: "Kept") -> str:
    state = _state(kept)
    return state or "".join(_local(due, kept.schedule) for due in _upcoming(kept, 1)) or "now"


def _last(kept: "Kept") -> str:
    told = _local(kept.last_due, kept.schedule) if kept.last_due else "-"
    return f"{told} {kept.last_task}" if kept.last_task else told


def _local(moment: datetime, schedule: Schedule) -> str:
    return f"{moment.astimezone(ZoneInfo(schedule.zone)):%Y-%m-%d %H:%M:%S %Z}"


def _what(schedule: Schedule) -> str:
    """A few words; of a prompt its beginning."""
    if schedule.task != INVOKE:
        return schedule.task
    text = _printable(str(schedule.kwargs.get("prompt") or schedule.kwargs.get("messages")))
    return text if len(text) <= TEXT_COLUMNS else f"{text[: TEXT_COLUMNS - 1]}…"


def _printable(text: str) -> str:
    """With everything that could move a terminal's cursor written out."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)
