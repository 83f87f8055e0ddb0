"""`gaelp audit`: what was decided about agents, and what they have spent."""

import sys
from datetime import UTC, datetime
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
    epilog="Example: gaelp audit export --from 2026-11-01 --agent 1 --format csv > november.csv",
)


def _moment(given: str | None) -> str | None:
    """A day or a moment, in UTC where it names no zone. Raises BadParameter."""
    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(
            f"{given} is no moment: write 2026-11-01, or 2026-11-01T08:00:00+01:00."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


From = Annotated[
    str | None, typer.Option("--from", help="Such as 2026-11-01, in UTC, or with a time.", callback=_moment)
]
To = Annotated[str | None, typer.Option("--to", help="Before this moment.", callback=_moment)]
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

    Example: gaelp audit list --agent 1 --from 2026-11-22
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

    Example: gaelp audit export --from 2026-11-01 --to 2026-12-01 > november.jsonl
    """
    asked = {"from": since, "to": until, "agent_id": agent, "format": form}
    for line in api().lines("audit/export", **asked):
        sys.stdout.write(line)
