"""`gaelp models list|pull|warm|unload`: what the nodes have on disk and in memory."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.cli.server import Listed, Server, chosen
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.errors import BrokerUnavailable, NodeError
from gaelp_tasks.overview import live_nodes, runners

__all__ = ["models_app"]

SHORT_DIGEST = 12
MOST_NAMED = 3  #: runs
STEP = 10  #: percent between two plain lines of a pull

models_app = typer.Typer(help="Models of the nodes: list, pull, warm, unload.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Model, as in llama3.2:1b.")]
OnNode = Annotated[
    str,
    typer.Option("--node", metavar="URL", help="Only this node; default: every one of GAELP_OLLAMA_NODES."),
]


class Layers:
    """How far a pull is: the bytes of its layers, which come one after the other."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    def take(self, told: Mapping[str, Any]) -> None:
        """One line of the server."""
        digest, total, completed = told.get("digest"), told.get("total"), told.get("completed") or 0
        if isinstance(digest, str) and isinstance(total, int) and isinstance(completed, int):
            self._layers[digest] = (completed, total)

    @property
    def completed(self) -> int:
        """Bytes that are there."""
        return sum(completed for completed, _ in self._layers.values())

    @property
    def total(self) -> int:
        """Bytes of all layers named so far."""
        return sum(total for _, total in self._layers.values())

    def percent(self) -> str:
        """In whole steps, ' 40 %'; '' while no size is known."""
        return f" {100 * self.completed // self.total // STEP * STEP} %" if self.total else ""


class Answer(NamedTuple):
    """What became of a verb on one node."""

    node: str
    trouble: str = ""  #: one sentence; '' when all is well
    told: Any = None


@models_app.command(name="list")
def list_(*, node: OnNode = "", as_json: Json = False) -> None:
    """Models of every node: size, digest, context, and whether they are in memory.

    Example: gaelp models list --node http://127.0.0.1:11434
    """
    with chosen(node, app.settings) as servers:
        answers = _everywhere(servers, Server.models)
    if as_json:
        rows = [{"node": one.node, **model._asdict()} for one in answers for model in one.told or ()]
        print_json({"models": rows, "troubles": _troubles(answers)})
    else:
        _print_models(answers)
    _end(answers, say=not as_json)


@models_app.command()
def pull(name: Name, *, node: OnNode = "", as_json: Json = False) -> None:
    """Fetch a model to every node, one after the other; Ctrl-C stops it, a later pull goes on from there.

    Example: gaelp models pull llama3.2:1b
    """
    answers = []
    with chosen(node, app.settings) as servers:
        for server in servers:
            try:
                answers.append(_answer(server, lambda one: _pull(one, name, quiet=as_json)))
            except KeyboardInterrupt:
                note("Interrupted: what has come stays on the node, and pulling again goes on from there.")
                raise typer.Exit(130) from None
    done = [{"node": one.node, "seconds": round(one.told, 3)} for one in answers if not one.trouble]
    if as_json:
        print_json({"model": name, "pulled": done, "troubles": _troubles(answers)})
    else:
        for row in done:
            out.print(escape(f"{row['node']} has {name} ({row['seconds']:.1f} s)."))
    _end(answers, say=not as_json)


@models_app.command()
def warm(name: Name, *, node: OnNode = "", as_json: Json = False) -> None:
    """Load a model on every node, with the context and for the time that the settings say.

    Example: gaelp models warm llama3.2:1b   (before the first users come)
    """
    with chosen(node, app.settings) as servers:
        answers = _everywhere(servers, lambda server: _warm(server, name))
    done = [{"node": one.node, "seconds": round(one.told, 3)} for one in answers if not one.trouble]
    if as_json:
        print_json({"model": name, "warmed": done, "troubles": _troubles(answers)})
    else:
        for row in done:
            out.print(escape(f"{name} is in memory on {row['node']}, after {row['seconds']:.1f} s."))
    _end(answers, say=not as_json)


@models_app.command()
def unload(
    name: Name,
    *,
    node: OnNode = "",
    force: Annotated[bool, typer.Option("--force", help="Also while invocations run on it.")] = False,
    as_json: Json = False,
) -> None:
    """Let a model go from the memory of every node; running answers on it still end.

    Example: gaelp models unload llama3.2:1b --node http://127.0.0.1:11434
    """
    with chosen(node, app.settings) as servers:
        if not force:
            _ask_the_runs(name, [server.name for server in servers], may_ask=not as_json)
        answers = _everywhere(servers, lambda server: _unload(server, name))
    done = [{"node": one.node, "freed_bytes": one.told} for one in answers if one.told]
    if as_json:
        print_json({"model": name, "unloaded": done, "troubles": _troubles(answers)})
    else:
        for row in done:
            out.print(escape(f"{row['node']} unloads {name}, which frees {decimal(row['freed_bytes'])}."))
        if not done and not any(one.trouble for one in answers):
            out.print(escape(f"{name} was not in memory."))
    _end(answers, say=not as_json)


def _answer(server: Server, ask: Callable[[Server], Any]) -> Answer:
    try:
        return Answer(server.name, told=ask(server))
    except NodeError as error:
        return Answer(server.name, str(error))


def _everywhere(servers: Sequence[Server], ask: Callable[[Server], Any]) -> list[Answer]:
    """What all nodes answer, asked at once; Ctrl-C waits for none of them."""
    futures: list[Future[Answer]] = [Future() for _ in servers]

    def fill(future: Future[Answer], server: Server) -> None:
        try:
            future.set_result(_answer(server, ask))
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            future.set_exception(error)

    for pair in zip(futures, servers, strict=True):
        threading.Thread(target=fill, args=pair, daemon=True).start()
    try:
        return [future.result() for future in futures]
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _print_models(answers: Sequence[Answer]) -> None:
    table = Table("model", "size", "digest", "in memory", "context", "family", "can", "node", box=None)
    rows = [(one.node, model) for one in answers for model in one.told or ()]
    for at, model in rows:
        table.add_row(
            escape(model.name),
            decimal(model.size_bytes),
            model.digest[:SHORT_DIGEST],
            _in_memory(model),
            str(model.context or "-"),
            escape(model.family) or "-",
            escape(", ".join(model.capabilities)) or "-",
            escape(at),
        )
    if rows:
        out.print(table)
    elif not any(one.trouble for one in answers):
        out.print("No node has a model: `gaelp models pull llama3.2:1b` fetches one.")


def _in_memory(model: Listed) -> str:
    """Bytes and for how long; '-' when it is not there."""
    if not model.expires_at and not model.memory_bytes:
        return "-"
    try:
        left_s = (datetime.fromisoformat(model.expires_at) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return decimal(model.memory_bytes)
    days = left_s / 86_400
    lasts = "for ever" if days > 365 else f"for {max(0.0, left_s):.0f} s"  # noqa: PLR2004  Ollama's «for ever» is 292 years
    return f"{decimal(model.memory_bytes)}, {lasts}"


def _pull(server: Server, model: str, *, quiet: bool) -> float:
    """The seconds that it took."""
    began = monotonic()
    layers = Layers()
    if quiet or not sys.stdout.isatty():
        said = ""
        for told in server.pull(model):
            layers.take(told)
            percent = layers.percent() if "digest" in told else ""
            line = f"{server.name}: {told.get('status', '')}{percent}"
            if line != said and not quiet:
                print(line, flush=True)
            said = line
        return monotonic() - began
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(highlight=False)) as progress:
        task = progress.add_task(escape(server.name), total=None)
        for told in server.pull(model):
            layers.take(told)
            words = escape(f"{server.name} {told.get('status', '')}")
            progress.update(task, description=words, completed=layers.completed, total=layers.total or None)
    return monotonic() - began


def _warm(server: Server, name: str) -> float:
    """The seconds that it took."""
    began = monotonic()
    found = server.find(name)
    server.load(found.name, embeds="embedding" in found.capabilities)
    return monotonic() - began


def _unload(server: Server, name: str) -> int:
    """The bytes that it held, 0 where it was not in memory."""
    held_bytes = server.find(name).memory_bytes
    if held_bytes:
        server.unload(name)
    return held_bytes


def _ask_the_runs(name: str, nodes: Sequence[str], *, may_ask: bool) -> None:
    """Refuse, or on a terminal ask, where invocations run on the model. Raises BrokerUnavailable."""
    try:
        active = runners(app, live_nodes(app))
    except BrokerUnavailable as error:
        raise BrokerUnavailable(
            f"{error} Nobody can tell whether it is in use; --force unloads it all the same."
        ) from None
    busy = [
        run
        for run in active
        if run.node in {"", *nodes} and (not run.model or canonical(run.model) == canonical(name))
    ]
    if not busy:
        return
    ids = ", ".join(run.id for run in busy[:MOST_NAMED]) + (" and more" if len(busy) > MOST_NAMED else "")
    sentence = f"{name} is in use, or may be, by {ids}"
    if may_ask and sys.stdin.isatty() and typer.confirm(f"{sentence}. Unload it all the same?"):
        return
    note(f"{sentence}: wait for them, `gaelp cancel` them, or say --force.")
    raise typer.Exit(1)


def _troubles(answers: Sequence[Answer]) -> list[dict[str, str]]:
    return [{"node": one.node, "trouble": one.trouble} for one in answers if one.trouble]


def _end(answers: Sequence[Answer], *, say: bool) -> None:
    """Say what went wrong, one sentence a node; exit code 1 if anything did."""
    for one in answers:
        if one.trouble and say:
            note(one.trouble)
    if any(one.trouble for one in answers):
        raise typer.Exit(1)
