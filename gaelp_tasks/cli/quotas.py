"""`gaelp quotas`: what users may hold of the machines at once, asked of the API."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks.cli.api_client import api
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.models.quota import FIELDS
from gaelp_tasks.models.resources import NAMES, Resources

__all__ = ["quotas_app"]

quotas_app = typer.Typer(
    help="What users may hold of the machines at once; asks the API (GAELP_API_URL, GAELP_API_TOKEN).",
    no_args_is_help=True,
    epilog="Example: gaelp quotas set ann --cpu 16 --memory 64Gi --gpu 4",
)

User = Annotated[str, typer.Argument(metavar="USER", help="A user's name.")]
AnyTenant = Annotated[str | None, typer.Option("--tenant", help="Whose; your own if not given.")]


@quotas_app.command("list")
def list_(*, as_json: Json = False) -> None:
    """Every user with limits or holds of his own: what is held, of how much.

    Example: gaelp quotas list --json | jq '.[] | select(.held.gpus > 0) | .user'
    """
    _print(list(api().every("quotas")), as_json=as_json)


@quotas_app.command()
def show(
    user: Annotated[
        str | None, typer.Argument(metavar="USER", help="A user's name; yours if not given.")
    ] = None,
    *,
    tenant: AnyTenant = None,
    as_json: Json = False,
) -> None:
    """One user's quota.

    Example: gaelp quotas show
    """
    name = user or api().get("users/me")["name"]
    found = api().get(f"quotas/{quote(name, safe='')}", tenant=tenant)
    if as_json:
        print_json(found)
        return
    _print([found], as_json=False)


@quotas_app.command("set")
def set_(
    user: User,
    *,
    cpu: Annotated[str | None, typer.Option(help="Cores, such as 10 or 500m.")] = None,
    memory: Annotated[str | None, typer.Option(help="Such as 20Gi.")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPUs, whole.")] = None,
    storage: Annotated[str | None, typer.Option(help="Such as 100Gi.")] = None,
    runs: Annotated[int | None, typer.Option(min=0, help="Runs at once.")] = None,
    tenant: AnyTenant = None,
    as_json: Json = False,
) -> None:
    """Set a user's limits; what is not given is the cluster's default again. What is held stays held.

    Example: gaelp quotas set ann --cpu 16 --memory 64Gi --gpu 4 --runs 100
    """
    told = {"cpu": cpu, "memory": memory, "gpu": gpu, "storage": storage, "runs": runs}
    given = {name: value for name, value in told.items() if value is not None}
    found = api().put(f"quotas/{quote(user, safe='')}", given, tenant=tenant)
    if as_json:
        print_json(found)
        return
    _print([found], as_json=False)


def _print(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("Nobody holds anything, and everybody has the defaults: gaelp quotas set USER --cpu 16")
        return
    table = Table("user", "tenant", *FIELDS, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for one in found:
        held, limit, own = one["held"], one["limit"], one["own"]
        cells = [
            f"{_text(name, held[field])} of {_text(name, limit[field])}{'' if own[field] is None else ' *'}"
            for name, field in FIELDS.items()
        ]
        table.add_row(*map(escape, (one["user"], one["tenant"], *cells)))
    out.print(table)
    if any(value is not None for one in found for value in one["own"].values()):
        out.print("* a limit of his own")


def _text(name: str, value: int) -> str:
    """As a quantity."""
    return Resources(**{NAMES[name]: value}).quantities().get(name, "0") if name in NAMES else str(value)
