"""`gaelp worker`, `beat`, `flower`: the programs of a cluster, each checked before it starts."""

import os
import socket
from typing import Annotated

import typer

from gaelp_tasks import app
from gaelp_tasks.cli.installing import installable
from gaelp_tasks.connections import eviction_policy, unsafe, worded
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.logs import dress
from gaelp_tasks.overview import live_nodes

__all__ = ["beat", "flower", "worker"]

LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]


@installable("worker")
def worker(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Option(help="Name of this worker; must be unique in the cluster.")] = "",
    loglevel: LogLevel = "info",
) -> None:
    """Run invocations on this machine's Ollama server. Ctrl-C or SIGTERM drains it."""
    _refuse_unsafe_broker()
    hostname = name or _free_name()
    app.worker_main([*_quiet(), "worker", f"--hostname={hostname}", f"--loglevel={loglevel}", *context.args])


@installable("beat")
def beat(context: typer.Context, *, loglevel: LogLevel = "info") -> None:
    """Publish what is due; run two or more, and another takes over within 5 s when one dies."""
    with worded(app.settings):
        app.redis.ping()
    if app.settings.traces:
        app.tracing.export("gaelp-beat")
    app.start([*_quiet(), "beat", f"--loglevel={loglevel}", *context.args])


@installable("flower")
def flower(
    context: typer.Context,
    *,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5555,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    control: Annotated[
        bool, typer.Option("--control", help="Let the browser terminate tasks and steer workers, too.")
    ] = False,
) -> None:
    """Watch tasks, workers and queues in a browser; no prompt or answer is shown.

    The login comes from GAELP_FLOWER_LOGIN=user:password; every page, file
    and API call asks for it, but for /healthcheck. Read only without
    --control. Flags of Flower itself (--max_tasks=5000) go through.
    """
    from gaelp_tasks.cli import dashboard  # noqa: PLC0415  Flower takes a second to import

    login = os.environ.get("GAELP_FLOWER_LOGIN", "").strip()
    if not all(login.partition(":")):
        raise typer.BadParameter("Set GAELP_FLOWER_LOGIN=user:password; Flower shows who runs what.")
    if not login.isascii():
        raise typer.BadParameter("GAELP_FLOWER_LOGIN may hold ASCII characters only: Flower knows no others.")
    with worded(app.settings):
        app.redis.ping()
    try:
        dashboard.serve(app, address=address, port=port, login=login, control=control, more=context.args)
    except dashboard.OptionRefused as refused:
        raise typer.BadParameter(str(refused)) from None


def _quiet() -> tuple[str, ...]:
    """Celery's banner is no JSON, nor is what it has to say before it sets up its logs."""
    dress(app.settings)
    return ("--quiet",) if app.settings.log_format == "json" else ()


def _refuse_unsafe_broker() -> None:
    with worded(app.settings):
        trouble = unsafe(app.settings, eviction_policy(app.redis))
    if trouble:
        raise BrokerUnavailable(trouble)


def _free_name() -> str:
    host = socket.gethostname()
    taken = {node.worker for node in live_nodes(app)}
    first = f"gaelp@{host}"
    return first if first not in taken else f"gaelp-{os.getpid()}@{host}"
