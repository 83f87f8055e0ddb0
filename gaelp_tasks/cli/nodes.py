"""`gaelp nodes`, and how nodes look wherever they are shown."""

from collections.abc import Mapping, Sequence
from threading import Event
from time import monotonic, time
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gaelp_tasks import app, cordons
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.cordons import Wish
from gaelp_tasks.errors import NotFound
from gaelp_tasks.models.capacity import ModelSlots, NodeSnapshot
from gaelp_tasks.overview import live_nodes, waiting_in
from gaelp_tasks.services.nodes import worker_of
from gaelp_tasks.waiting import NO_WORKER, has, name_of, same

__all__ = [
    "NARROW",
    "models_table",
    "nodes_app",
    "nodes_table",
    "print_nodes",
    "reasons",
    "troubles",
]

GIB = 1024**3
WIDEST_BAR = 16  #: slots; more are told as a number only
SMALL = 80  #: columns of the usual terminal
NARROW = 110  #: columns; below it, what can be spared is left out
WIDE = 140  #: columns; from here on there is room for what few look for
#: of a node: name -> columns that a terminal must have for it
COLUMNS = {
    "node": 0, "health": 0, "slots": 0, "tokens/s": 0, "memory free": 60, "loaded": SMALL, "worker": NARROW,
    "seen": NARROW, "server holds": WIDE,
}  # fmt: skip

EVERY_S = 0.2  #: a drain looks so often

Worker = Annotated[
    str, typer.Argument(metavar="WORKER", help="As `gaelp nodes list` names it, or the address of its node.")
]

nodes_app = typer.Typer(help="The Ollama servers that workers run on.", no_args_is_help=True)


@nodes_app.command(name="list")
def list_(*, as_json: Json = False) -> None:
    """Every node as its worker announces it: health, slots, memory, tokens per second, and its models.

    Example: gaelp nodes list --json | jq '.nodes[].url'
    """
    nodes = live_nodes(app)
    absent = sorted(cordons.asked(app) - {node.worker for node in nodes})
    if as_json:
        print_json({"nodes": [node.model_dump() for node in nodes], "cordoned_and_absent": absent})
    else:
        print_nodes(nodes, waiting_in(app))
        if absent:
            out.print(f"Cordoned, and not running now: {escape(', '.join(absent))}")
    if not nodes:
        raise typer.Exit(1)


@nodes_app.command()
def cordon(worker: Worker, *, as_json: Json = False) -> None:
    """Have a worker take nothing new; what runs there goes on. It stays so, restarts included.

    Example: gaelp nodes cordon gaelp@gpu-1
    """
    name = _known(worker)
    cordons.ask(app, name, Wish.CORDON)
    _say(as_json, name, "cordoned", f"{name} takes nothing new; `gaelp nodes resume {name}` ends that.")


@nodes_app.command()
def drain(
    worker: Worker,
    *,
    hand_back: Annotated[
        bool, typer.Option("--hand-back", help="Give what runs there back to its queue now.")
    ] = False,
    grace: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which the rest is given back.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Cordon a worker and wait until nothing runs there; without a grace, for as long as that takes.

    What is given back keeps its text so far, spends no attempt and goes on elsewhere. Ctrl-C ends only the
    waiting: the worker stays cordoned.

    Example: gaelp nodes drain gaelp@gpu-1 --grace 60 && ssh gpu-1 sudo reboot
    """
    name = _known(worker)
    cordons.ask(app, name, Wish.HAND_BACK if hand_back else Wish.CORDON)
    began, told, asked, idle_at = monotonic(), -1, hand_back, 0.0
    try:
        while mine := [node for node in live_nodes(app) if node.worker == name]:
            left = len({one for node in mine for one in (*node.running, *node.unplaced)})
            if left != told and not as_json:
                out.print(escape(f"{name}: {left} running"))
                told = left
            seen_at = min(node.seen_at for node in mine)
            if left or not all(node.closed for node in mine):
                idle_at = 0.0
            elif not idle_at:
                idle_at = seen_at
            elif seen_at > idle_at:  # twice in a row: a message was perhaps on its way at the first
                break
            if grace is not None and not asked and monotonic() - began >= grace:
                cordons.ask(app, name, Wish.HAND_BACK)
                asked = True
            Event().wait(EVERY_S)
    except KeyboardInterrupt:
        note(f"{name} stays cordoned, with {told} running; `gaelp nodes resume {name}` ends that.")
        raise typer.Exit(130) from None
    if asked:  # a worker that starts again must not go on giving back
        cordons.ask(app, name, Wish.CORDON)
    _say(as_json, name, "drained", f"{name}: nothing runs there, and nothing new is taken.")


@nodes_app.command()
def resume(worker: Worker, *, as_json: Json = False) -> None:
    """Let a cordoned worker take work again.

    Example: gaelp nodes resume gaelp@gpu-1
    """
    name = _known(worker)
    lifted = cordons.lift(app, name)
    said = f"{name} takes work again." if lifted else f"{name} was not cordoned."
    _say(as_json, name, "open", said)


def _say(as_json: bool, worker: str, state: str, sentence: str) -> None:
    if as_json:
        print_json({"worker": worker, "state": state})
    else:
        out.print(escape(sentence))


def _known(given: str) -> str:
    """A worker's whole name. Raises BadParameter."""
    try:
        return worker_of(app, given)
    except NotFound as error:
        raise typer.BadParameter(str(error)) from None


def print_nodes(nodes: Sequence[NodeSnapshot], waiting: Mapping[str, int]) -> None:
    """The tables of nodes and their models, and below them what is wrong and why something waits.

    `waiting`: messages in each queue.
    """
    if not nodes:
        out.print(NO_WORKER)
        return
    out.print(nodes_table(nodes, time(), width=out.width))
    for trouble in troubles(nodes):
        out.print(f"[red]{escape(trouble)}[/]")
    if (models := models_table(nodes, waiting)).row_count:
        out.print()
        out.print(models)
    for reason in reasons(nodes, waiting):
        out.print(reason)


def nodes_table(nodes: Sequence[NodeSnapshot], now: float, *, width: int) -> Table:
    """Nodes as a table for a terminal of that many columns; `now` in Unix seconds."""
    table = Table(title="Nodes", title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    fits = [name for name, from_width in COLUMNS.items() if width >= from_width]
    if all(node.by_model or not node.loaded for node in nodes) and any(node.by_model for node in nodes):
        fits = [name for name in fits if name != "loaded"]  # the table of models tells more
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
            "memory free": memory_shown(node, with_source=width >= NARROW or "loaded" not in fits),
            "loaded": escape(", ".join(node.loaded)) or "-",
            "worker": escape(node.worker),
            "seen": f"{max(0.0, now - node.seen_at):.0f} s ago",
            "server holds": "-" if node.held_bytes is None else f"{gib(node.held_bytes)} GiB",
        }
        table.add_row(*(row[name] for name in fits))
    return table


def models_table(nodes: Sequence[NodeSnapshot], waiting: Mapping[str, int], *, most: int = 0) -> Table:
    """Models in memory or asked for, with their slots; at most so many rows, 0: all.

    `waiting`: messages in each queue, told for the model of any node.
    """
    table = Table(title="Models", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    for name in ("slots", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("waiting", "a run"):
        table.add_column(name, justify="right", no_wrap=True)
    if len(nodes) > 1:
        table.add_column("node", overflow="fold")
    rows = [(node, one) for node in nodes for one in node.by_model]
    for node, one in rows[: most or None]:
        row = [
            escape(one.model),
            model_slots_shown(one),
            state_shown(one),
            str(_waiting_for(one.model, waiting) or "-"),
            "-" if one.run_s is None else f"{one.run_s:.1f} s",
        ]
        table.add_row(*row, *([escape(node.url)] if len(nodes) > 1 else []))
    return table


def model_slots_shown(told: ModelSlots) -> str:
    """A bar and a number, `■□ 1/2`; red where nothing may start."""
    shown = f"{bar(told.busy, told.slots)} {told.busy}/{told.slots}".strip()
    return shown if told.slots else f"[red]{shown}[/]"


def state_shown(told: ModelSlots) -> str:
    """`loaded`, `loading`, `draining`, `unloading`, `not in memory`; who else has loaded it."""
    state = escape(told.phase or "not in memory")
    if told.others:
        return f"{state} by others"
    return state if told.phase in {"loaded", ""} else f"[yellow]{state}[/]"


def reasons(nodes: Sequence[NodeSnapshot], waiting: Mapping[str, int]) -> list[Text]:
    """A sentence for each model whose invocations wait, and why; red where it has no slot at all.

    Where they only wait for its slots, all of them taken, the table says so.
    """
    told = []
    for node in nodes:
        for one in node.by_model:
            if one.why and not 0 < one.slots <= one.busy:
                at = f"{node.url}: " if len(nodes) > 1 else ""
                told.append(Text(f"{at}{one.why}", style="" if one.slots else "red"))
    for model in dict.fromkeys(name_of(queue) for queue, depth in waiting.items() if depth):
        if model and not any(has(node, model) for node in nodes):
            number = _waiting_for(model, waiting)
            told.append(Text(f"{number} wait for {model}, which no node has.", style="red"))
    return told


def _waiting_for(model: str, waiting: Mapping[str, int]) -> int:
    return sum(depth for queue, depth in waiting.items() if (name := name_of(queue)) and same(model, name))


def memory_shown(node: NodeSnapshot, *, with_source: bool) -> str:
    """`5.1 of 8.0 GiB (cgroup v2)`: what is free, and which probe said so."""
    shown = f"{gib(node.memory.free_bytes)} of {gib(node.memory.total_bytes)} GiB"
    return f"{shown} ({escape(node.memory.source)})" if with_source else shown


def slots_shown(node: NodeSnapshot) -> str:
    """A bar and a number, `■□ 1/2`; `+3` are runs of the worker that no node has answered yet."""
    open_runs = set(node.unplaced) - set(node.embedding)
    waiting = f" +{len(open_runs)}" if open_runs and node.healthy else ""
    embeds = f", {len(node.embedding)} embed" if node.embedding else ""
    return f"{bar(node.busy, node.slots)} {node.busy}/{node.slots}{waiting}{embeds}".strip()


def health(node: NodeSnapshot) -> str:
    """'ok', 'cordoned', 'stopping', or in a few words what is wrong; `troubles` has the sentence."""
    if node.healthy:
        return node.closed or "ok"
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
