"""What the demo has going on at one moment, and how that looks."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gaelp_tasks import InvocationHandle
from gaelp_tasks.models.capacity import NodeSnapshot

__all__ = ["Act", "Scene", "node_shown", "results_table"]

COLOURS = {"interactive": "green", "batch": "cyan", "background": "magenta"}
GIB = 1024**3


@dataclass(kw_only=True)
class Act:
    """One invocation of the demo, from the caller's side; times are of the monotonic clock."""

    what: str
    agent: str
    tier: str
    handle: InvocationHandle
    cut_after: int | None = None  #: cancelled after that many characters; None: not at all
    asked_at: float = field(default_factory=monotonic)
    text: str = ""  #: what has been streamed so far
    cut_at: float | None = None  #: when it was cancelled
    over_at: float | None = None  #: when its stream ended
    result: dict[str, Any] = field(default_factory=dict)  #: {} before its end, and where it failed
    error: str = ""  #: '' unless it failed

    def take(self, result: Any) -> None:
        """Take in the result mapping, or the exception that came in its place."""
        if isinstance(result, dict):
            self.result = result
        else:
            self.error = f"{type(result).__name__}: {result}"

    @property
    def state(self) -> str:
        """One word."""
        if self.error:
            return "failed"
        return str(self.result.get("stop_reason", "streaming" if self.text else "waiting"))

    @property
    def started_at(self) -> float | None:
        """When a worker took it; None where the result does not tell."""
        queued_s = self.result.get("timings", {}).get("queued_s")
        return None if queued_s is None else self.asked_at + queued_s


@dataclass
class Scene:
    """All acts and the nodes, as last seen; Rich draws it whenever it likes."""

    acts: list[Act] = field(default_factory=list)
    began: float = field(default_factory=monotonic)
    nodes: list[NodeSnapshot] = field(default_factory=list)
    most_running: int = 0
    quiet: asyncio.Event = field(default_factory=asyncio.Event)  #: no node runs anything

    def see(self, nodes: list[NodeSnapshot]) -> None:
        """Take in what the nodes announce."""
        self.nodes = nodes
        running = sum(len(node.running) for node in nodes)
        self.most_running = max(self.most_running, running)
        (self.quiet.clear if running else self.quiet.set)()

    def __rich__(self) -> Group:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=11)
        table.add_column(width=9)
        table.add_column(width=24, no_wrap=True)
        table.add_column(ratio=1, no_wrap=True)
        for act in self.acts:
            tail = " ".join(act.text.split())[-60:]
            style = "dim" if act.result else "default"
            table.add_row(
                Text(act.tier, style=COLOURS[act.tier]), act.state, act.what, Text(tail, style=style)
            )
        return Group(table, *(Text(node_shown(node), style="bold") for node in self.nodes))


def node_shown(node: NodeSnapshot) -> str:
    """Slots, memory and loaded models of a node in one line."""
    busy = min(node.busy, node.slots)
    slots = "■" * busy + "□" * (node.slots - busy)
    memory = f"{node.memory.free_bytes / GIB:.1f} of {node.memory.total_bytes / GIB:.1f} GiB free"
    return f"slots {slots} {busy}/{node.slots}, memory {memory}, loaded {', '.join(node.loaded) or 'nothing'}"


def results_table(acts: Iterable[Act]) -> Table:
    """What every invocation waited and did, as its result tells."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("tier", "agent", "task"):
        table.add_column(name, no_wrap=True)
    for name in ("queued", "first token", "tokens", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended by")
    for act in acts:
        timings, usage = act.result.get("timings", {}), act.result.get("usage", {})
        first_s, tokens = timings.get("first_token_s"), usage.get("completion_tokens", 0)
        writing_s = timings.get("total_s", 0.0) - (first_s or 0.0)
        table.add_row(
            Text(act.tier, style=COLOURS[act.tier]),
            act.agent,
            act.what,
            seconds(timings.get("queued_s")),
            seconds(first_s),
            str(tokens),
            f"{tokens / writing_s:.0f}" if first_s is not None and writing_s > 0 else "-",
            escape(act.error) or act.state,
        )
    return table


def seconds(value: float | None) -> str:
    """A time for people; '-' where there is none."""
    return "-" if value is None else f"{value:.2f} s"
