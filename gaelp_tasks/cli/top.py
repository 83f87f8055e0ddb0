"""`gaelp top`: nodes, queues and running invocations, live; it reads no prompt and no answer."""

import os
import select
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, strftime, time
from typing import Annotated, NamedTuple

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gaelp_tasks import app
from gaelp_tasks.cli.nodes import NARROW, models_table, nodes_table, reasons, troubles
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.cli.signals import INTERRUPTED, Noted, noted_signals
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.overview import Runner, busy_slots, live_nodes, of_tiers, runners, waiting_in
from gaelp_tasks.waiting import NO_WORKER

__all__ = ["View", "frame", "look", "top"]

EVERY_S = 1.0
LATE_S = 3.0  #: Redis that takes longer than this is told to be away
TITLE = 3  #: lines of a table beside its rows: title, head, and how many more there are
TITLES = 2 * TITLE + 1  #: of two with a line between
RUNS_AT_LEAST = 4  #: rows of runs that keep their place however many models there are
SHORT_ID = 8  #: characters; enough to tell two apart; `gaelp show`, `attach` and `cancel` take them
#: of the runs: name -> columns that a terminal must have for it
COLUMNS = {
    "id": 0, "agent": 60, "tier": 0, "model": 60, "age": 0, "tokens": 0,
    "node": NARROW, "worker": NARROW, "attempt": NARROW,
}  # fmt: skip


class View(NamedTuple):
    """What there is to see at one moment."""

    at: float  #: Unix seconds
    nodes: list[NodeSnapshot]
    waiting: dict[str, int]  #: messages in each queue
    running: list[Runner]  #: the longest running first


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    as_json: Json = False,
) -> None:
    """Watch nodes, queues and running invocations, every second; q or Ctrl-C leaves.

    Off a terminal it prints one frame, as --once does.

    Example: gaelp top --once
    """
    if as_json:
        seen = look()
        print_json(
            {
                "at": seen.at,
                "nodes": [node.model_dump() for node in seen.nodes],
                "queues": of_tiers(seen.waiting),
                "by_queue": {name: depth for name, depth in seen.waiting.items() if depth},
                "running": [run._asdict() for run in seen.running],
            }
        )
    elif once or not sys.stdout.isatty():
        seen = look()
        out.print(frame(seen, seen.at, width=out.width))
    else:
        _watch()


def look() -> View:
    """Everything as it is now. Raises BrokerUnavailable."""
    nodes = live_nodes(app)
    return View(time(), nodes, waiting_in(app), runners(app, nodes))


def frame(seen: View, now: float, *, width: int, height: int = 0, trouble: str = "") -> RenderableType:
    """One picture for a terminal of that size; `height` 0 shows every run. `now` in Unix seconds."""
    slots = sum(node.slots for node in seen.nodes)
    rate = sum(node.tokens_per_s for node in seen.nodes)
    busy = busy_slots(seen.nodes)
    head = f"[bold]gaelp[/] {strftime('%H:%M:%S')}  {busy}/{slots} slots  {rate:.1f} tokens/s"
    queues = "  ".join(f"{name} [bold]{depth}[/]" for name, depth in of_tiers(seen.waiting).items())
    parts: list[RenderableType] = [Text.from_markup(head)]
    if trouble:
        parts.append(Text(trouble, style="red"))
    if seen.nodes:
        parts += [Text(), nodes_table(seen.nodes, now, width=width)]
    elif not trouble:
        parts += [Text(), Text(NO_WORKER)]
    parts += [Text(sentence, style="red") for sentence in troubles(seen.nodes)]
    told = _most_telling(reasons(seen.nodes, seen.waiting), width, height)
    last = [Text(), Text.from_markup(f"Waiting  {queues}"), Text()]
    known = sum(len(node.by_model) for node in seen.nodes)
    spare = height - _lines([*parts, *told, *last], width) - RUNS_AT_LEAST - TITLES
    most = max(1, min(known, spare)) if height else known
    if known:
        parts += [Text(), models_table(seen.nodes, seen.waiting, most=most)]
    if known > most:
        parts.append(Text(f"and {known - most} more: `gaelp nodes list`", style="dim"))
    parts += [*told, *last]
    rows = max(1, height - _lines(parts, width) - TITLE) if height else len(seen.running)
    if seen.running:
        parts.append(_runs_table(seen.running[:rows], now, width=width))
    else:
        parts.append(Text("Running: nothing"))
    if len(seen.running) > rows:
        parts.append(Text(f"and {len(seen.running) - rows} more", style="dim"))
    return Group(*parts)


def _most_telling(told: list[Text], width: int, height: int) -> list[Text]:
    """Those that fit into a quarter of the terminal, what is red first; all where there is no bound."""
    if not height:
        return told
    shown: list[Text] = []
    for sentence in sorted(told, key=lambda one: one.style != "red"):
        if shown and _lines([*shown, sentence], width) > height // 4:
            more = f"and {len(told) - len(shown)} more that wait: `gaelp nodes list`"
            return [*shown, Text(more, style="dim")]
        shown.append(sentence)
    return shown


def _lines(parts: Sequence[RenderableType], width: int) -> int:
    """How many lines they take on a terminal of that width."""
    console = Console(width=width)
    return len(console.render_lines(Group(*parts), console.options))


def _runs_table(runs: list[Runner], now: float, *, width: int) -> Table:
    table = Table(title="Running", title_justify="left", box=None, padding=(0, 2, 0, 0))
    fits = [name for name, from_width in COLUMNS.items() if width >= from_width]
    for name in fits:
        right = name in {"age", "tokens"}
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for run in runs:
        age = "-" if run.since is None else f"{max(0.0, now - run.since):.0f} s"
        model = run.model or ("-" if run.since is None else "default")
        shown = {"id": run.id[:SHORT_ID], "model": model, "age": age, "node": run.node or "-"}
        row = run._asdict() | shown
        table.add_row(*(escape(str(row[name])) for name in fits))
    return table


@dataclass(slots=True)
class Looker:
    """Looks every second in a thread of its own: a Redis that hangs must not freeze the keys."""

    seen: View = field(default_factory=lambda: View(time(), [], {}, []))
    trouble: str = "Looking ..."
    began: float = field(default_factory=monotonic)  #: when the look under way began
    looked: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until it is ended."""
        while not self.ended.is_set():
            self.began = monotonic()
            try:
                self.seen, self.trouble = look(), ""
            except GaelpError as error:
                self.trouble = str(error)
            self.looked.set()
            self.ended.wait(EVERY_S)

    def frame(self, console: Console) -> RenderableType:
        """The newest picture."""
        silent_s = monotonic() - self.began
        late = f"Redis has not answered for {silent_s:.0f} s." if silent_s > LATE_S else ""
        size = console.size
        return frame(
            self.seen, time(), width=size.width, height=size.height - 1, trouble=self.trouble or late
        )


def _watch() -> None:
    looker = Looker()
    threading.Thread(target=looker.run, name="gaelp-look", daemon=True).start()
    console = Console(highlight=False)
    try:
        with noted_signals() as noted, _single_keys():
            looker.looked.wait(EVERY_S)
            with Live(console=console, screen=True, auto_refresh=False) as live:
                live.update(looker.frame(console), refresh=True)
                while not _wants_to_leave(EVERY_S, noted):
                    live.update(looker.frame(console), refresh=True)
        if noted.code:
            raise typer.Exit(noted.code)
    except KeyboardInterrupt:  # before or after they were noted
        raise typer.Exit(INTERRUPTED) from None
    finally:
        looker.ended.set()


def _wants_to_leave(within_s: float, noted: Noted) -> bool:
    """Whether a signal came, q was pressed, or the terminal has gone, within this time."""
    keys_from = [sys.stdin] if sys.stdin.isatty() else []
    until = monotonic() + within_s
    while (left_s := until - monotonic()) > 0:
        ready, _, _ = select.select([noted.woken, *keys_from], [], [], left_s)
        if noted.woken in ready:
            return True
        if ready:
            keys = os.read(sys.stdin.fileno(), 1024)
            if not keys or b"q" in keys.lower():
                return True
    return False


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys arrive one by one and unseen; the terminal is as it was afterwards, whatever happens."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # noqa: PLC0415  only where there are such terminals
    import tty  # noqa: PLC0415  the same

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
