"""`gaelp agents`: agents, their versions and secrets, what they are measured by; asked of the API."""

import sys
from itertools import islice
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks.cli.agent_words import facts_of, table_of
from gaelp_tasks.cli.api_client import api, read_json
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.models.agent import AgentState, AgentType

__all__ = ["AgentId", "agents_app"]

agents_app = typer.Typer(
    help="Agents of the control plane; asks the API (GAELP_API_URL, GAELP_API_TOKEN).",
    no_args_is_help=True,
    epilog="Example: gaelp agents register agent-config.json, then gaelp agents deploy 1",
)
secrets_app = typer.Typer(help="Secrets of an agent: set, never shown.", no_args_is_help=True)
agents_app.add_typer(secrets_app, name="secrets")

AgentId = Annotated[int, typer.Argument(metavar="ID", min=1, help="Number of the agent.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="JSON; '-' is standard input.")]
Most = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


@agents_app.command("list")
def list_(
    *,
    status: Annotated[AgentState | None, typer.Option(help="Of these only.")] = None,
    type: Annotated[AgentType | None, typer.Option(help="Of these only.")] = None,  # noqa: A002  the name of the option
    name: Annotated[str | None, typer.Option(help="Called just so.")] = None,
    as_json: Json = False,
) -> None:
    """Every agent; those that are terminated with --status terminated.

    Example: gaelp agents list --type research
    """
    found = list(api().every("agents", status=status, type=type, name=name))
    if as_json:
        print_json(found)
    elif found:
        out.print(table_of(found, ("id", "name", "type", "status", "version", "owner", "budget_limit")))
    else:
        out.print("There are no agents: gaelp agents register agent-config.json")


@agents_app.command()
def show(agent: AgentId, *, as_json: Json = False) -> None:
    """All of one agent; of its secrets the names.

    Example: gaelp agents show 1
    """
    _tell(api().get(f"agents/{agent}"), as_json)


@agents_app.command()
def register(file: File, *, as_json: Json = False) -> None:
    """Register the agent that a file describes.

    Example: gaelp agents register examples/agent-config.json
    """
    _tell(api().post("agents", read_json(file)), as_json)


@agents_app.command()
def edit(agent: AgentId, file: File, *, as_json: Json = False) -> None:
    """Make a new version: what the file leaves out stays, and null takes away.

    Example: echo '{"budget_limit": 6000}' | gaelp agents edit 1 -
    """
    _tell(api().patch(f"agents/{agent}", read_json(file)), as_json)


@agents_app.command()
def status(
    agent: AgentId,
    to: Annotated[AgentState, typer.Argument(metavar="STATUS", help="running, paused, completed, failed.")],
    *,
    as_json: Json = False,
) -> None:
    """Bring an agent into another state.

    Example: gaelp agents status 1 paused
    """
    found = api().patch(f"agents/{agent}/status", status=to.value)
    if as_json:
        print_json(found)
    else:
        out.print(f"{agent}: {found['status']}")


@agents_app.command()
def versions(agent: AgentId, *, limit: Most = 50, as_json: Json = False) -> None:
    """Its versions, the newest first; what stands in one with --json.

    Example: gaelp agents versions 1 --json | jq '.[0].spec'
    """
    found = list(islice(api().every(f"agents/{agent}/versions"), limit))
    if as_json:
        print_json(found)
    else:
        out.print(table_of(found, ("version", "author", "created_at", "rolled_back_to")))


@agents_app.command()
def rollback(
    agent: AgentId,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The one to go back to.")],
    *,
    as_json: Json = False,
) -> None:
    """Make a new version that is an earlier one again.

    Example: gaelp agents rollback 1 3
    """
    _tell(api().post(f"agents/{agent}/versions/{version}/rollback"), as_json)


@agents_app.command()
def remove(
    agent: AgentId,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """End an agent for good: its deployments stop; its versions and the audit stay.

    Example: gaelp agents remove 1
    """
    if sys.stdin.isatty() and not yes:
        typer.confirm(f"Terminate agent {agent} for good?", abort=True)
    found = api().delete(f"agents/{agent}")
    if as_json:
        print_json(found)
    else:
        out.print(f"{agent}: {found['status']}")


@agents_app.command()
def metrics(agent: AgentId, *, limit: Most = 20, as_json: Json = False) -> None:
    """What it was measured by, the newest first.

    Example: gaelp agents metrics 1 --limit 5
    """
    found = list(islice(api().every(f"agents/{agent}/metrics"), limit))
    if as_json:
        print_json(found)
        return
    names = list(dict.fromkeys(name for one in found for name in one["values"]))
    table = Table("at", "job", "step", *names, "resources", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for one in found:
        values = [f"{one['values'][name]:g}" if name in one["values"] else "-" for name in names]
        used = {name: value for name, value in (one["resources"] or {}).items() if value is not None}
        told = " ".join(f"{name}={value:g}" for name, value in used.items()) or "-"
        row = (one["at"], *(str(one[key] or "-") for key in ("job_id", "step")), *values, told)
        table.add_row(*map(escape, row))
    out.print(table)


# --- secrets ------------------------------------------------------------------------------


@secrets_app.command("list")
def list_secrets(agent: AgentId, *, as_json: Json = False) -> None:
    """The names of its secrets; nobody is told the secrets.

    Example: gaelp agents secrets list 1
    """
    _names(api().get(f"agents/{agent}/secrets"), as_json)


@secrets_app.command("set")
def set_secret(
    agent: AgentId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The variable that its program reads.")],
    *,
    as_json: Json = False,
) -> None:
    """Set a secret; it is asked for, or read from standard input, and stands in no history of a shell.

    Example: gaelp agents secrets set 1 API_KEY < key.txt
    """
    value = typer.prompt(name, hide_input=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\r\n")
    _names(api().put(f"agents/{agent}/secrets", {name: value}), as_json)


@secrets_app.command("remove")
def remove_secret(
    agent: AgentId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    *,
    as_json: Json = False,
) -> None:
    """Take a secret away.

    Example: gaelp agents secrets remove 1 API_KEY
    """
    _names(api().delete(f"agents/{agent}/secrets/{name}"), as_json)


@secrets_app.command("reseal")
def reseal(*, as_json: Json = False) -> None:
    """Seal all secrets of all agents by the first of GAELP_SECRET_KEYS; the others are needed no more.

    Example: gaelp agents secrets reseal
    """
    found = api().post("secrets/reseal")
    if as_json:
        print_json(found)
    else:
        out.print(f"{found['resealed']} secrets were sealed anew.")


def _names(found: list[str], as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif found:
        out.print(escape("\n".join(found)))
    else:
        note("it has no secrets.")


def _tell(agent: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(agent)
        return
    for name, text in facts_of(agent):
        out.print(f"[bold]{escape(name)}[/] {escape(text)}")
