"""`gaelp nodes list`, and how nodes look wherever they are shown."""

from collections.abc import Sequence
from time import time

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.overview import live_nodes

__all__ = ["NARROW", "NO_WORKER", "nodes_app", "nodes_table", "print_nodes", "troubles"]

GIB = 1024**3
WIDEST_BAR = 16  #: slots; more are told as a number only
NARROW = 110  #: columns; below it, what can be spared is left out
#: of a node: name -> columns that a terminal must have for it
COLUMNS = {
    "node": 0, "health": 0, "slots": 0, "tokens/s": 0, "memory free": 60, "loaded": 80, "worker": NARROW,
    "seen": NARROW,
}  # fmt: skip
NO_WORKER = "No worker is running: start one with `gaelp worker`, or everything with `make up`."

nodes_app = typer.Typer(help="The Ollama servers that workers run on.", no_args_is_help=True)


@nodes_app.command(name="list")
def list_(*, as_json: Json = False) -> None:
    """Every node as its worker announces it: health, slots, memory, models, tokens per second.

    Example: gaelp nodes list --json | jq '.nodes[].url'
    """
    nodes = live_nodes(app)
    if as_json:
        print_json({"nodes": [node.model_dump() for node in nodes]})
    else:
        print_nodes(nodes)
    if not nodes:
        raise typer.Exit(1)


def print_nodes(nodes: Sequence[NodeSnapshot]) -> None:
    """The table of nodes, and below it what is wrong with those that are unwell."""
    if not nodes:
        out.print(NO_WORKER)
        return
    out.print(nodes_table(nodes, time(), width=out.width))
    for trouble in troubles(nodes):
        out.print(f"[red]{escape(trouble)}[/]")


def nodes_table(nodes: Sequence[NodeSnapshot], now: float, *, width: int) -> Table:
    """Nodes as a table for a terminal of that many columns; `now` in Unix seconds."""
    table = Table(title="Nodes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    fits = [name for name, from_width in COLUMNS.items() if width >= from_width]
    for name in fits:
        right, cut = name == "tokens/s", name == "health"
        table.add_column(
            name,
            overflow="ellipsis" if cut else "fold",
            justify="right" if right else "left",
            no_wrap=right or cut,
        )
    for node in nodes:
        row = {
            "node": escape(node.url),
            "health": health(node) if node.healthy else f"[red]{escape(health(node))}[/]",
            "slots": slots_shown(node),
            "tokens/s": f"{node.tokens_per_s:.1f}",
            "memory free": f"{gib(node.memory.free_bytes)} of {gib(node.memory.total_bytes)} GiB",
            "loaded": escape(", ".join(node.loaded)) or "-",
            "worker": escape(node.worker),
            "seen": f"{max(0.0, now - node.seen_at):.0f} s ago",
        }
        table.add_row(*(row[name] for name in fits))
    return table


def slots_shown(node: NodeSnapshot) -> str:
    """A bar and a number, `■□ 1/2`; `+3` are runs of the worker that no node has answered yet."""
    open_runs = set(node.unplaced) - set(node.embedding)
    waiting = f" +{len(open_runs)}" if open_runs and node.healthy else ""
    embeds = f", {len(node.embedding)} embed" if node.embedding else ""
    return f"{bar(node.busy, node.slots)} {node.busy}/{node.slots}{waiting}{embeds}".strip()


def health(node: NodeSnapshot) -> str:
    """'ok', or in a few words what is wrong; `troubles` has the sentence."""
    if node.healthy:
        return "ok"
    words = node.trouble.removeprefix(node.url).partition(": ")[0].strip(" .")
    return words or "does not answer"


def troubles(nodes: Sequence[NodeSnapshot]) -> list[str]:
    """A sentence for each node that is unwell."""
    return [node.trouble or f"{node.url} does not answer." for node in nodes if not node.healthy]


def bar(busy: int, slots: int) -> str:
    """Filled and empty slots; '' where there are too many to draw."""
    filled = min(busy, slots)
    return "■" * filled + "□" * (slots - filled) if slots <= WIDEST_BAR else ""


def gib(size_bytes: int) -> str:
    """In GiB, one digit behind the point."""
    return f"{size_bytes / GIB:.1f}"
