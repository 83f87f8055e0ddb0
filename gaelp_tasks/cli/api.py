"""`gaelp api`: the program that serves HTTP."""

import asyncio
import logging
import sys
from typing import Annotated

import typer

from gaelp_tasks import app
from gaelp_tasks.cli.installing import installable
from gaelp_tasks.cli.output import out
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.logs import BESIDE, dress
from gaelp_tasks.settings import Settings

__all__ = ["api"]

logger = logging.getLogger(__name__)

NEEDS = "the API needs more than a worker does: pip install 'gaelp-tasks[api]'."


@installable("api")
def api(
    *,
    loglevel: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve the HTTP API at GAELP_API_ADDRESS; SIGTERM or Ctrl-C ends it once requests have ended.

    It needs GAELP_JWT_SECRET, and brings the tables of the database up to date. Its metrics are at
    GAELP_METRICS_ADDRESS, without a token. Any number of them may run: on one machine each needs its own
    addresses.

    Example: gaelp api --loglevel warning
    """
    try:
        from gaelp_tasks.api import server  # noqa: PLC0415  FastAPI takes a while, and is an extra
        from gaelp_tasks.api.application import application  # noqa: PLC0415  the same
        from gaelp_tasks.api.requests import told  # noqa: PLC0415  the same
    except ModuleNotFoundError as error:
        raise SettingsError(f"{NEEDS[0].upper()}{NEEDS[1:]} ({error.name} is missing.)") from None

    settings = app.settings
    level = logging.getLevelNamesMapping().get(loglevel.upper())
    if level is None:
        raise typer.BadParameter("--loglevel is debug, info, warning or error.")
    made = application(settings, listens=True)
    asyncio.run(_bring_up_to_date(settings))
    try:
        listener = server.listen(*settings.api_listener)
    except OSError as error:
        typer.echo(
            f"gaelp: {settings.api_address} cannot be listened on ({error.strerror or error}): set "
            "GAELP_API_ADDRESS to a free one.",
            err=True,
        )
        raise typer.Exit(1) from None
    logging.basicConfig(level=level, format="[%(asctime)s: %(levelname)s] %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # or it tells of each look at the tables
    dress(settings)
    BESIDE.append(told)
    where = (
        f"The API is at http://{settings.api_address}, metrics at http://{settings.metrics_address}/metrics."
    )
    if settings.log_format == "json":
        logger.info(where)
    else:
        out.print(f"{where} Ctrl-C ends it.")
        sys.stdout.flush()
    try:
        with listener:
            server.serve(made, settings, listener)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _bring_up_to_date(settings: Settings) -> None:
    """The tables: where the database is away, a sentence says so before anything begins."""
    from gaelp_tasks.db.database import Database  # noqa: PLC0415  SQLAlchemy takes a while to import

    db = Database(settings.sql_url)
    try:
        await db.migrate()
    finally:
        await db.close()
