"""`gaelp metrics`: the program that tells Prometheus about the whole cluster."""

import logging
import signal
import sys
from threading import Event
from typing import Annotated

import typer

from gaelp_tasks import app
from gaelp_tasks.cli.installing import installable
from gaelp_tasks.cli.output import out
from gaelp_tasks.connections import connect
from gaelp_tasks.logs import dress
from gaelp_tasks.metrics.cluster import Latest, samples
from gaelp_tasks.metrics.series import CLUSTER, MOST_MODELS, Names
from gaelp_tasks.survey import Survey

__all__ = ["metrics"]

logger = logging.getLogger(__name__)

ANSWER_S = 2.0  #: each of the few questions of a look; Prometheus itself waits for ten seconds


@installable("metrics")
def metrics(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Print the page instead; exit code 1 where Redis does not answer.")
    ] = False,
) -> None:
    """Tell Prometheus about queues, nodes, memory and dead letters of the whole cluster. Run one.

    It listens at GAELP_METRICS_ADDRESS. It goes on while Redis is away, and says so: gaelp_redis_up is 0.
    What happens inside workers each of them tells itself, where GAELP_METRICS_PORT names a port.

    Example: gaelp metrics --once | grep ^gaelp_queue_depth
    """
    from gaelp_tasks.metrics.page import Collected, new_page, serve, text  # noqa: PLC0415  no other verb needs it

    app.redis = connect(app.settings, answer_s=ANSWER_S)
    latest = Latest(Survey(app).take)
    page, models = new_page(), Names(MOST_MODELS)
    Collected(CLUSTER, lambda: samples(latest(), models), page)
    if once:
        print(text(page), end="")
        raise typer.Exit(0 if latest().up else 1)
    host, port = app.settings.metrics_listener
    dress(app.settings)
    over = Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    try:
        end = serve(page, host, port)
    except OSError as error:
        typer.echo(
            f"gaelp: {app.settings.metrics_address} cannot be listened on ({error.strerror or error}): set "
            "GAELP_METRICS_ADDRESS to a free one.",
            err=True,
        )
        raise typer.Exit(1) from None
    where = f"Metrics are at http://{app.settings.metrics_address}/metrics."
    if app.settings.log_format == "json":
        logger.info(where)
    else:
        out.print(f"{where} Ctrl-C ends it.")
        sys.stdout.flush()
    try:
        over.wait()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        end()
