"""From Redis into the database, and out of it again when it is old: what has become of invocations."""

import logging
from datetime import UTC, datetime, timedelta

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.history import History
from gaelp_tasks.db.identity import identity
from gaelp_tasks.endings import Told, forget, waiting
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.runtime import Runtime

__all__ = ["prune", "record"]

logger = logging.getLogger(__name__)

AT_ONCE = 100  #: ends in one transaction; they take the loop, on which streams are written, some 10 ms
BATCHES = 1000  #: of those in one go
HOME_S = 3600  #: a database that nothing was recorded in for so long makes way for another one


def record(app: GaelpApp, db: Database, loop: Runtime) -> int:
    """Move what waits; returns how many. Raises DatabaseUnavailable, and what redis-py raises.

    They leave Redis after the database has them, and one row stands for each invocation: whatever dies in
    between, each is there once. Several may do this at the same time.
    """
    name = loop.run(identity(db))
    if not _is_home(app, name):
        raise DatabaseUnavailable(f"The history of this cluster is kept elsewhere than in {db.place}.")
    recorded = 0
    for _ in range(BATCHES):
        told = waiting(app.redis, app.keys, most=AT_ONCE)
        if not told:
            break
        loop.run(_keep(db, told))
        forget(app.redis, app.keys, [one.entry for one in told])
        recorded += len(told)
    return recorded


def prune(app: GaelpApp, db: Database, loop: Runtime) -> int:
    """Throw away what ended longer ago than the setting says; how many. Raises DatabaseUnavailable."""
    keep_s = app.settings.history_keep_s
    return loop.run(History(db, None).prune(datetime.now(UTC) - timedelta(seconds=keep_s))) if keep_s else 0


def _is_home(app: GaelpApp, name: str) -> bool:
    """Whether the history goes to the database of this name: to the first that asks, or it is scattered."""
    key = app.keys.history_home
    app.redis.set(key, name, nx=True, ex=HOME_S)
    is_home = app.redis.get(key) == name
    if is_home:
        app.redis.expire(key, HOME_S)
    return is_home


async def _keep(db: Database, told: list[Told]) -> None:
    rows = [one.ending.columns() | {"finished_at": one.at} for one in told if one.ending is not None]
    if len(rows) < len(told):
        logger.warning("%d entries of the history cannot be read: they are lost.", len(told) - len(rows))
    await History(db, None).add(rows)
