"""`gaelp status`, `show`, `doctor`, `config`: looking, without touching."""

from typing import Annotated, Any

import typer
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli import checks, cluster
from gaelp_tasks.cli.nodes import print_nodes
from gaelp_tasks.cli.output import Json, OneId, out, print_json
from gaelp_tasks.lifecycle import State
from gaelp_tasks.overview import Description, describe, live_nodes, of_tiers, waiting_in, whole_id
from gaelp_tasks.settings import load_settings
from gaelp_tasks.waiting import Expected

__all__ = ["config", "doctor", "show", "status"]


def status(*, as_json: Json = False) -> None:
    """Nodes, memory, models with their slots, and queues right now; exit code 1 when no worker is running.

    Example: gaelp status --json | jq .queues
    """
    nodes, waiting = live_nodes(app), waiting_in(app)
    depths = of_tiers(waiting)
    if as_json:
        by_queue = {name: depth for name, depth in waiting.items() if depth}
        print_json({"nodes": [node.model_dump() for node in nodes], "queues": depths, "by_queue": by_queue})
    else:
        print_nodes(nodes, waiting)
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
    """State, position, expected start, why it waits, attempts, node, timings; exit code 1 for an unknown id.

    Example: gaelp show $(gaelp run "Why is the sky blue?" --detach)
    """
    told = describe(app, whole_id(app, invocation_id))
    if as_json:
        place = told.place._asdict() if told.place else None
        starts = told.expected._asdict() if told.expected else None
        print_json(told._asdict() | {"place": place, "expected": starts})
    else:
        _print_description(told)
    if told.state is State.UNKNOWN:
        raise typer.Exit(1)


def _print_description(told: Description) -> None:
    rows: dict[str, Any] = {"id": told.id, "state": told.state}
    if told.place is not None:
        rows["position"] = f"{told.place.position} in queue {told.place.queue}"
    if told.expected is not None:
        rows["expected start"] = _start_in_words(told.expected)
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


def _start_in_words(told: Expected) -> str:
    if told.start_in_s is None:
        return f"unknown: {told.how}"
    return "now" if told.start_in_s < 1 else f"in about {in_words(told.start_in_s)}"


def in_words(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`: as exact as an estimate is."""
    if seconds < 100:  # noqa: PLR2004  two digits
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"  # noqa: PLR2004  the same


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


def doctor(
    *,
    whole: Annotated[
        bool, typer.Option("--cluster", help="The whole cluster, as Redis and SQL tell it, from any machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check broker, database, nodes, models, workers and versions, and say what to do.

    It looks at this machine and the nodes of GAELP_OLLAMA_NODES; --cluster looks at every worker and beat, at
    their clocks and releases, and at what waits. Exit code 1 where something is wrong; a warning is none.

    Example: GAELP_OLLAMA_NODES=http://a:11434,http://b:11434 gaelp doctor
    """
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    found = []
    for check in cluster.cluster_checks(app) if whole else checks.all_checks(app):
        found.append(check)
        if not as_json:
            out.print(f"{marks[check.verdict]:>4}  {check.name}: {check.finding}")
            if check.advice:
                out.print(f"      -> {check.advice}")
    if as_json:
        print_json([check._asdict() for check in found])
    if any(check.verdict == "fail" for check in found):
        raise typer.Exit(1)
