"""The options by which `gaelp schedule add` and `edit` say what is due and when; the schedule they make."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, cast
from zoneinfo import ZoneInfo

import typer

from gaelp_tasks import app
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import INVOKE, InvalidSchedule, Missed, Overlap, Schedule, Window
from gaelp_tasks.tasks.scheduled import check

__all__ = ["built", "with_options"]

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
TIMES = ("cron", "interval_s", "at")

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
    typer.Option(
        "--only-when-idle/--whenever-due",
        help="Wait while a higher tier has work; its own tier does not count.",
    ),
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


def _options(  # noqa: PLR0913  one option each
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
) -> None:
    """What a verb with options takes beside its own."""


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as Typer shall see it: with these options in the place of its `**given`."""
    own = inspect.signature(verb)
    parts = list(own.parameters.values())
    first = [one for one in parts if one.kind is one.POSITIONAL_OR_KEYWORD]
    last = [one for one in parts if one.kind is one.KEYWORD_ONLY]
    shared = inspect.signature(_options).parameters.values()
    cast("Any", verb).__signature__ = own.replace(parameters=[*first, *shared, *last])
    return verb


def built(base: Mapping[str, Any], given: Mapping[str, Any]) -> Schedule:
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
        new["start"] = datetime.now(UTC).replace(microsecond=0)
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
