"""`gaelp agents deploy` and the verbs of what comes of it."""

from typing import Annotated, Any

import typer

from gaelp_tasks.cli.agent_words import table_of
from gaelp_tasks.cli.agents import AgentId
from gaelp_tasks.cli.api_client import api
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.models.deployment import DeploymentState, Environment

__all__ = ["VERBS"]

Number = Annotated[int, typer.Argument(metavar="DEPLOYMENT", min=1, help="Number of the deployment.")]
COLUMNS = ("id", "version", "environment", "replicas", "status", "created_by", "approved_by", "why")


def deploy(
    agent: AgentId,
    *,
    version: Annotated[int | None, typer.Option(min=1, help="The newest if not given.")] = None,
    environment: Annotated[
        Environment | None, typer.Option(help="The usual one of its type if not given.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="How many of it.")] = 1,
    as_json: Json = False,
) -> None:
    """Ask for a deployment; it runs once it is approved, where that is needed, and started.

    Example: gaelp agents deploy 1 --replicas 2
    """
    wanted = {"version": version, "environment": environment, "replicas": replicas}
    body = {name: value for name, value in wanted.items() if value is not None}
    _tell(api().post(f"agents/{agent}/deployments", body), as_json)


def deployments(
    agent: AgentId,
    *,
    status: Annotated[DeploymentState | None, typer.Option(help="Of these only.")] = None,
    as_json: Json = False,
) -> None:
    """The deployments of an agent.

    Example: gaelp agents deployments 1 --status running
    """
    found = list(api().every(f"agents/{agent}/deployments", status=status))
    if as_json:
        print_json(found)
    elif found:
        out.print(table_of(found, COLUMNS))
    else:
        out.print(f"Agent {agent} has no deployments: gaelp agents deploy {agent}")


def approve(agent: AgentId, deployment: Number, *, as_json: Json = False) -> None:
    """Approve a deployment; an operator does, who has made none of it.

    Example: gaelp agents approve 1 1
    """
    _act(agent, deployment, "approve", as_json)


def start(agent: AgentId, deployment: Number, *, as_json: Json = False) -> None:
    """Let a deployment run.

    Example: gaelp agents start 1 1
    """
    _act(agent, deployment, "start", as_json)


def stop(agent: AgentId, deployment: Number, *, as_json: Json = False) -> None:
    """Let a deployment run no more.

    Example: gaelp agents stop 1 1
    """
    _act(agent, deployment, "stop", as_json)


VERBS = (deploy, deployments, approve, start, stop)


def _act(agent: int, deployment: int, verb: str, as_json: bool) -> None:
    _tell(api().post(f"agents/{agent}/deployments/{deployment}/{verb}"), as_json)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        out.print(table_of([found], COLUMNS))
