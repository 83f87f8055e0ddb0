"""`gaelp audit`: what was decided about agents, and what they have spent."""

import sys
from itertools import islice
from typing import Annotated, Literal

import typer

from gaelp_tasks.cli.agent_words import table_of
from gaelp_tasks.cli.api_client import api
from gaelp_tasks.cli.output import Json, out, print_json

__all__ = ["audit_app"]

audit_app = typer.Typer(
    help="What was decided about agents, and what they have spent; for operators.",
    no_args_is_help=True,
    epilog="Example: gaelp audit export --from 2026-11-01T00:00:00Z --agent 1 --format csv > november.csv",
)

From = Annotated[str | None, typer.Option("--from", help="Such as 2026-11-01T00:00:00Z.")]
To = Annotated[str | None, typer.Option("--to", help="Before this moment.")]
Agent = Annotated[int | None, typer.Option(min=1, help="Of this agent only.")]


@audit_app.command("list")
def list_(
    *,
    since: From = None,
    until: To = None,
    agent: Agent = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Decisions, and violations of policies, the oldest first.

    Example: gaelp audit list --agent 1 --from 2026-11-22T00:00:00Z
    """
    asked = {"from": since, "to": until, "agent_id": agent}
    found = list(islice(api().every("audit", **asked), limit))
    if as_json:
        print_json(found)
    else:
        out.print(table_of(found, ("at", "kind", "agent_id", "actor", "act", "subject", "rule", "why")))


@audit_app.command()
def export(
    *,
    since: From = None,
    until: To = None,
    agent: Agent = None,
    form: Annotated[Literal["jsonl", "csv"], typer.Option("--format", help="Of the lines.")] = "jsonl",
) -> None:
    """Every decision, violation and payment of a period, on standard output.

    Example: gaelp audit export --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z > november.jsonl
    """
    asked = {"from": since, "to": until, "agent_id": agent, "format": form}
    for line in api().lines("audit/export", **asked):
        sys.stdout.write(line)
