"""`gaelp status`, `show`, `doctor`, `config`: looking, without touching."""

from typing import Annotated, Any

import typer
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli import checks
from gaelp_tasks.cli.nodes import print_nodes
from gaelp_tasks.cli.output import Json, OneId, out, print_json
from gaelp_tasks.lifecycle import State
from gaelp_tasks.overview import Description, describe, live_nodes, queue_depths, whole_id
from gaelp_tasks.settings import load_settings

__all__ = ["config", "doctor", "show", "status"]


def status(*, as_json: Json = False) -> None:
    """Nodes, slots, memory and queues right now; exit code 1 when no worker is running.

    Example: gaelp status --json | jq .queues
    """
    nodes, depths = live_nodes(app), queue_depths(app)
    if as_json:
        print_json({"nodes": [node.model_dump() for node in nodes], "queues": depths})
    else:
        print_nodes(nodes)
        table = Table("queue", "waiting", title="Queues", title_justify="left", box=None)
        for name, depth in depths.items():
            table.add_row(name, str(depth))
        out.print(table)
    if not nodes:
        raise typer.Exit(1)


def show(
    invocation_id: OneId,
    *,
    as_json: Json = False,
) -> None:
    """State, position, attempts, node and timings of one invocation; exit code 1 for an unknown id.

    Example: gaelp show $(gaelp run "Why is the sky blue?" --detach)
    """
    told = describe(app, whole_id(app, invocation_id))
    if as_json:
        place = told.place._asdict() if told.place else None
        print_json(told._asdict() | {"place": place})
    else:
        _print_description(told)
    if told.state is State.UNKNOWN:
        raise typer.Exit(1)


def _print_description(told: Description) -> None:
    rows: dict[str, Any] = {"id": told.id, "state": told.state}
    if told.place is not None:
        rows["position"] = f"{told.place.position} in queue {told.place.queue}"
    if told.why:
        rows["why"] = told.why
    rows |= {name: told.start[name] for name in ("agent", "worker", "attempt") if name in told.start}
    if told.node:
        rows["node"] = told.node
    if told.result:
        rows |= {
            name: told.result[name] for name in ("model", "stop_reason", "attempts") if name in told.result
        }
        rows |= {name: f"{value:.3f}" for name, value in told.result["timings"].items() if value is not None}
        rows |= told.result["usage"]
    if told.error:
        rows["error"] = told.error
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", str(value))
    out.print(table)


def config(
    *, as_json: Json = False, env: Annotated[bool, typer.Option(help="As a .env file.")] = False
) -> None:
    """Every setting with its value, unit, default and meaning.

    Example: gaelp config --env > .env
    """
    rows = load_settings().rows()
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    if env:
        for row in rows:
            unit = f" ({row.unit})" if row.unit else ""
            print(f"# {row.meaning}{unit}\n#{row.variable}={row.default}\n")
        return
    table = Table("variable", "value", "unit", "default", "meaning", box=None)
    table.columns[0].no_wrap = True
    for row in rows:
        value = f"[green]{row.value}[/]" if row.given else row.value
        table.add_row(row.variable, value, row.unit, row.default if row.given else "", row.meaning)
    out.print(table)


def doctor(*, as_json: Json = False) -> None:
    """Check broker, nodes, models, workers and versions, and say what to do.

    Example: GAELP_OLLAMA_NODES=http://a:11434,http://b:11434 gaelp doctor
    """
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    found = []
    for check in checks.all_checks(app):
        found.append(check)
        if not as_json:
            out.print(f"{marks[check.verdict]:>4}  {check.name}: {check.finding}")
            if check.advice:
                out.print(f"      -> {check.advice}")
    if as_json:
        print_json([check._asdict() for check in found])
    if any(check.verdict == "fail" for check in found):
        raise typer.Exit(1)
