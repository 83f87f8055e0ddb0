"""`gaelp history`: what has become of invocations, long after Redis has forgotten them."""

import re
import sys
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app, endings
from gaelp_tasks.cli.asking import Asking, opened, readable, tenant_name
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.connections import unavailable
from gaelp_tasks.db.address import sqlite_file
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.lifecycle import TERMINAL
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import YEARS
from gaelp_tasks.remains import clear

if TYPE_CHECKING:
    from gaelp_tasks.db.database import Database
    from gaelp_tasks.db.history import History, InvocationRow
    from gaelp_tasks.models.batch_work import LineOf

__all__ = ["history_app"]

LONGEST = 10_000  #: rows of one list

history_app = typer.Typer(
    help="What has become of invocations: one row each, kept in the database.",
    epilog="Example: gaelp history --since 1d --state failed, then gaelp history show ID. While beat runs, "
    "what has ended is here within seconds.",
)

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
STATES = tuple(sorted(TERMINAL))
NAME_COLUMNS = 32  #: of a model or an agent in the table

Tenant = Annotated[
    str | None, typer.Option(help="Those of this tenant; '' for those of nobody.", callback=tenant_name)
]


def _opened(tenant: str | None) -> "AbstractContextManager[Asking[History]]":
    """The history of a tenant, of all with None."""

    def history(db: "Database") -> "History":
        from gaelp_tasks.db.history import History  # noqa: PLC0415  SQLAlchemy takes a while to import

        return History(db, tenant)

    return opened(history)


def _is_empty() -> bool:
    """Whether there is no database yet; to look must not make one."""
    url = app.settings.sql_url
    file = sqlite_file(url) if url.startswith("sqlite:") else None
    return file is not None and not file.exists()


@history_app.callback(invoke_without_command=True)
def listed(  # noqa: PLR0913  one option each
    context: typer.Context,
    *,
    tier: Annotated[Tier | None, typer.Option(help="Those of this tier.")] = None,
    model: Annotated[str, typer.Option(help="Those of this model.", callback=readable)] = "",
    agent: Annotated[str, typer.Option(help="Those of this agent.", callback=readable)] = "",
    state: Annotated[str, typer.Option(help=f"Those that are {', '.join(STATES)}.")] = "",
    tenant: Tenant = None,
    since: Annotated[
        str,
        typer.Option(
            help="Those that ended so long ago at most, 90s 30m 2h 7d, or after '2026-11-22 08:00'."
        ),
    ] = "",
    most: Annotated[int, typer.Option(min=1, max=LONGEST, help="Show at most so many.")] = 50,
    skip: Annotated[
        int, typer.Option(min=0, max=LONGEST * LONGEST, help="Leave out the newest so many.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """What has become of invocations, the newest first.

    Example: gaelp history --since 2h --tier batch --json | jq '.[] | .total_s'
    """
    if context.invoked_subcommand is not None:
        return
    from gaelp_tasks.db.history import Which  # noqa: PLC0415  SQLAlchemy takes a while to import

    if state and state not in STATES:
        raise typer.BadParameter(f"{state} is none of {', '.join(STATES)}", param_hint="--state")
    which = Which(tier.value if tier else "", model, agent, state, _moment(since, "--since"))
    if _is_empty():
        rows, there = [], 0
    else:
        with _opened(tenant) as ask:
            rows = ask(lambda history: history.listed(which, most=most, skip=skip))
            there = ask(lambda history: history.count(which)) if len(rows) == most else skip + len(rows)
    if as_json:
        print_json([_facts(row) for row in rows])
    elif rows:
        out.print(_table(rows))
        if there > skip + len(rows):
            out.print(f"{there:,} there are (--most, --skip).")
    elif any(which) or skip or tenant is not None:
        out.print("Nothing in the history is like this.")
    else:
        out.print("There is no history yet: `gaelp beat` has it recorded, on a worker that has the database.")


@history_app.command()
def show(
    invocation_id: Annotated[
        str, typer.Argument(metavar="ID", help="Of the invocation, or how it begins.", callback=readable)
    ],
    *,
    text: Annotated[bool, typer.Option(help="Prompt and answer too, where they were kept.")] = False,
    tenant: Tenant = None,
    as_json: Json = False,
) -> None:
    """All that is known of one invocation; exit code 1 for an unknown id."""
    rows: list[InvocationRow] = []
    if not _is_empty():
        with _opened(tenant) as ask:
            rows = ask(lambda history: history.find(invocation_id))
    if len(rows) != 1:
        why = "has several that begin with" if rows else "does not have"
        typer.echo(f"gaelp: the history {why} {_printable(invocation_id)}.", err=True)
        raise typer.Exit(1)
    row = rows[0]
    facts = _facts(row) | ({"prompt": row.prompt, "text": row.text} if text else {})
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        out.print(f"[bold]{name}[/] {escape(_printable(str('-' if value in (None, '') else value)))}")


@history_app.command()
def purge(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Whole ids of invocations.")
    ] = None,
    *,
    older_than: Annotated[
        str, typer.Option(help="All that ended longer ago, 30d or 12h, or before '2026-11-22 08:00'.")
    ] = "",
    tenant: Tenant = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Throw away rows of the history, texts and all; ids that it does not have are told.

    Of what is named by its id Redis forgets result, token stream, attachment
    and dead letter, too. It is told what remains: a batch keeps its lines
    until `gaelp batch remove`, and what is not over stays as it is (exit
    code 1). Not found by an id, so never touched: answers in the cache (they
    end after GAELP_CACHE_TTL_S), the prompt of a schedule (`gaelp schedule
    remove`), and backups.

    \b
    gaelp history purge 3f2a0c1e-5d0b-4c57-9a53-0e4b7d1f9c26
    gaelp history purge --older-than 30d
    """  # noqa: D301  \b keeps the lines for click
    if bool(ids) == bool(older_than):
        raise typer.BadParameter("name invocations, or say --older-than")
    before = _moment(older_than, "--older-than")
    if before is None:
        _purge_all_of(list(dict.fromkeys(ids or ())), tenant)
        return
    if _is_empty():
        print("0 thrown away")
        return
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Throw away all that ended before {_local(before)} for good?", abort=True)
    with _opened(tenant) as ask:
        thrown = ask(lambda history: history.prune(before))
    print(f"{thrown:,} thrown away")


def _purge_all_of(ids: list[str], tenant: str | None) -> None:
    """Wherever they are; tells what stays, with exit code 1, and of what nothing was there.

    Of a tenant only what the history knows to be its own goes from Redis: there it has no name.
    """
    gone: set[str] = set()
    waiting: set[str] = set()
    lines: list[LineOf] = []
    if not _is_empty():
        with _opened(tenant) as ask:
            gone = {one for one in ids if ask(partial(_purge, one=one))}
        with opened(lambda db: db) as asked:
            lines = asked(partial(_lines, ids=ids, tenant=tenant))
            accepted, waiting = asked(partial(_purge_accepted, ids=ids, tenant=tenant))
            gone |= accepted
    under_way = {line.task_id for line in lines if line.is_open} | waiting
    stays = {line.task_id for line in lines}
    try:
        gone |= endings.withdraw(app.redis, app.keys, ids, tenant)
        cleared = clear(app, [one for one in ids if one not in under_way and (tenant is None or one in gone)])
    except (BrokerUnavailable, *unavailable):
        note("Redis does not answer: what it keeps of them may still be there. Say it again when it is back.")
        stays |= set(ids)
    else:
        gone |= cleared.gone
        stays |= cleared.going_on | waiting
        for one in sorted(cleared.going_on | waiting):
            note(f"{_printable(one)} is not over: gaelp cancel it first, then purge it again.")
    for line in lines:
        how = (
            f"gaelp batch cancel {line.batch_id}, then remove it"
            if line.is_open
            else (f"gaelp batch remove {line.batch_id}")
        )
        note(f"{line.task_id} is line {line.number:,} of a batch, which keeps its prompt and answer: {how}.")
    for one in ids:
        if one not in gone | stays:
            note(f"the history does not have {_printable(one)}.")
    print(f"{len(gone):,} thrown away")
    if stays:
        raise typer.Exit(1)


def _purge(history: "History", one: str) -> Coroutine[Any, Any, int]:
    return history.purge([one])


def _lines(db: "Database", *, ids: list[str], tenant: str | None) -> "Coroutine[Any, Any, list[LineOf]]":
    from gaelp_tasks.db.batch_upkeep import lines_of  # noqa: PLC0415  SQLAlchemy takes a while to import

    return lines_of(db, ids, tenant)


def _purge_accepted(
    db: "Database", *, ids: list[str], tenant: str | None
) -> "Coroutine[Any, Any, tuple[set[str], set[str]]]":
    from gaelp_tasks.db.accepted import Accepted  # noqa: PLC0415  SQLAlchemy takes a while to import

    return Accepted(db, tenant).purge(ids)


def _moment(text: str, option: str) -> datetime | None:
    """A moment, or so long ago; None for ''. Without a zone it is this machine's."""
    if not text:
        return None
    moment = None
    try:
        if span := re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", text.strip()):
            return datetime.now(UTC) - timedelta(seconds=float(span[1]) * SECONDS[span[2]])
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    if moment is None or moment.year not in YEARS:
        raise typer.BadParameter(
            f"'{text}' is neither a time like 2026-11-22 08:00 nor a span like 30m, 2h, 7d", param_hint=option
        )
    return moment


def _table(rows: "list[InvocationRow]") -> Table:
    names = ("ended", "id", "state", "tier", "agent", "model", "node", "tokens", "seconds", "attempts")
    table = Table(*names, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in rows:
        state = row.stop_reason if row.state == "cut" else row.error.partition(":")[0] or row.state
        seconds = "-" if row.total_s is None else f"{row.total_s:,.1f}"
        whom = (row.agent or "-", row.model or "-", row.node.partition("://")[2] or "-")
        table.add_row(
            _local(row.finished_at),
            escape(row.id),
            escape(state),
            row.tier,
            *(escape(_short(name)) for name in whom),
            f"{row.completion_tokens:,}",
            seconds,
            str(row.attempts),
        )
    return table


def _short(name: str) -> str:
    line = _printable(name)
    return line if len(line) <= NAME_COLUMNS else f"{line[: NAME_COLUMNS - 1]}…"


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _facts(row: "InvocationRow") -> dict[str, Any]:
    return row.facts() | {"finished_at": row.finished_at.isoformat()}


def _printable(text: str) -> str:
    """With everything that could move a terminal's cursor written out."""
    return "".join(mark if mark.isprintable() or mark == "\n" else ascii(mark)[1:-1] for mark in text)
