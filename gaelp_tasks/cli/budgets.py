"""`gaelp budgets`: what agents, users and jobs may spend, and what was paid for, asked of the API."""

from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks.cli.api_client import api
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.models.ledger import Group
from gaelp_tasks.models.money import UNITS, CostKind, OwnerKind, Period, micro_of, units

__all__ = ["budgets_app"]

budgets_app = typer.Typer(
    help="What agents, users and jobs may spend; asks the API (GAELP_API_URL, GAELP_API_TOKEN).",
    no_args_is_help=True,
    epilog="Example: gaelp budgets set user ann 20.00 --period month, then gaelp budgets costs --by kind",
)

Kind = Annotated[OwnerKind, typer.Argument(metavar="KIND", help="agent, user or job.")]
Owner = Annotated[str, typer.Argument(metavar="ID", help="Number of an agent or job, name of a user.")]
AnyTenant = Annotated[str | None, typer.Option("--tenant", help="Whose; your own if not given.")]
Most = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]
Moment = Annotated[str | None, typer.Option(help="Such as 2026-11-01T00:00:00Z.")]


@budgets_app.command("list")
def list_(
    *, kind: Annotated[OwnerKind | None, typer.Option(help="Of these only.")] = None, as_json: Json = False
) -> None:
    """Every budget: what is available, held and spent of it.

    Example: gaelp budgets list --kind agent
    """
    found = list(api().every("budgets", kind=kind))
    if as_json:
        print_json(found)
    elif found:
        _print(found)
    else:
        out.print("There are no budgets: gaelp budgets set user ann 20.00")


@budgets_app.command()
def show(kind: Kind, owner: Owner, *, tenant: AnyTenant = None, as_json: Json = False) -> None:
    """One budget.

    Example: gaelp budgets show agent 5
    """
    found = api().get(_place(kind, owner), tenant=tenant)
    if as_json:
        print_json(found)
        return
    _print([found])


@budgets_app.command("set")
def set_(
    kind: Kind,
    owner: Owner,
    limit: Annotated[str, typer.Argument(metavar="LIMIT", help="In units, such as 100 or 12.50.")],
    *,
    period: Annotated[Period, typer.Option(help="How often it counts anew, in UTC.")] = Period.NONE,
    tenant: AnyTenant = None,
    as_json: Json = False,
) -> None:
    """Make a budget, or change its limit; what is held and spent stays so.

    Example: gaelp budgets set user ann 20.00 --period month
    """
    try:
        limit_micro = micro_of(limit)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    body = {"limit_micro": limit_micro, "period": period.value}
    found = api().put(_place(kind, owner), body, tenant=tenant)
    if as_json:
        print_json(found)
        return
    _print([found])


@budgets_app.command()
def entries(
    kind: Kind, owner: Owner, *, tenant: AnyTenant = None, limit: Most = 50, as_json: Json = False
) -> None:
    """What moved in a budget, the newest first.

    Example: gaelp budgets entries agent 5 --limit 10
    """
    found = list(islice(api().every(f"{_place(kind, owner)}/entries", tenant=tenant), limit))
    if as_json:
        print_json(found)
        return
    table = Table("at", "move", "from", "to", "amount", "for", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for one in found:
        row = (one["at"], one["move"], one["source"], one["target"], units(one["amount_micro"]))
        table.add_row(*map(escape, (*row, one["key"] or one["by"])))
    out.print(table)


@budgets_app.command()
def costs(
    *,
    by: Annotated[list[Group] | None, typer.Option(help="Sum up by this; may be given again.")] = None,
    agent: Annotated[str | None, typer.Option(help="Of this agent only.")] = None,
    user: Annotated[str | None, typer.Option(help="Of this user only.")] = None,
    job: Annotated[str | None, typer.Option(help="Of this job only.")] = None,
    since: Moment = None,
    until: Moment = None,
    as_json: Json = False,
) -> None:
    """What was paid for, summed up; by kind where nothing else is asked for.

    Example: gaelp budgets costs --by agent --by month --since 2026-01-01T00:00:00Z
    """
    groups = list(dict.fromkeys(by or [Group.KIND]))
    which = {"agent": agent, "user": user, "job": job, "since": since, "until": until}
    found = list(api().every("costs", by=[group.value for group in groups], **which))
    if as_json:
        print_json(found)
        return
    counted = Group.KIND in groups
    columns = [*(group.value for group in groups), *(["quantity"] if counted else []), "amount"]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for one in found:
        quantity = [f"{one['quantity']:,} {UNITS[CostKind(one['kind'])]}".strip()] if counted else []
        row = [str(one[group.value] or "-") for group in groups]
        table.add_row(*map(escape, (*row, *quantity, units(one["amount_micro"]))))
    total = sum(one["amount_micro"] for one in found)
    table.add_row("total", *[""] * (len(columns) - 2), units(total), style="bold")
    out.print(table)


def _place(kind: OwnerKind, owner: str) -> str:
    return f"budgets/{kind.value}/{quote(owner, safe='')}"


def _print(found: list[dict[str, Any]]) -> None:
    names = ("owner", "tenant", "limit", "available", "held", "spent", "period")
    table = Table(*names, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for one in found:
        amounts = [units(one[f"{name}_micro"]) for name in ("limit", "available", "held", "spent")]
        row = (" ".join(one["owner"]), one["tenant"], *amounts, one["period"])
        table.add_row(*map(escape, row))
    out.print(table)
