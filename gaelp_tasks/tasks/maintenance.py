"""`gaelp.maintenance.*`: what beat has done now and then."""

import logging
import threading
from functools import cache

from gaelp_tasks.celery_app import app
from gaelp_tasks.connections import Refused
from gaelp_tasks.errors import DatabaseUnavailable, SettingsError
from gaelp_tasks.tasks.database import database_at

__all__ = [
    "expire_abandoned_streams",
    "expire_lost_attachments",
    "prune_batches",
    "prune_history",
    "record_history",
]

logger = logging.getLogger(__name__)

ABANDONED_S = 86_400

_alone = threading.Lock()  #: who closes the connections of a duty must not close those of another


@app.task(name="gaelp.maintenance.expire_abandoned_streams", ignore_result=True)
def expire_abandoned_streams(idle_s: float = ABANDONED_S) -> int:
    """Give a time to live to token streams that nobody ended, wrote or read for `idle_s` seconds.

    A stream lives until its run ends; one whose run vanished for good would stay for ever. Returns how many.
    """
    ttl_ms = int(app.settings.stream_ttl_s * 1000)
    expired = 0
    for key in app.redis.scan_iter(match=app.keys.stream("*"), count=1000):
        try:
            idle = app.redis.object("IDLETIME", key)
        except Refused:  # an LFU policy keeps no idle times
            return expired
        if app.redis.ttl(key) == -1 and idle is not None and int(str(idle)) >= idle_s:
            app.redis.pexpire(key, ttl_ms)
            expired += 1
    return expired


@app.task(name="gaelp.maintenance.expire_lost_attachments", ignore_result=True)
def expire_lost_attachments(idle_s: float = ABANDONED_S) -> int:
    """Give a time to live to what lies beside a message that is nowhere any more; returns how many."""
    from gaelp_tasks import leftovers  # noqa: PLC0415  only a running task needs it

    return leftovers.expire(app, idle_s=idle_s)


@app.task(name="gaelp.maintenance.record_history", ignore_result=True)
def record_history() -> int:
    """Move what has become of invocations from Redis into the database; returns how many.

    A worker that has no database leaves them to another one.
    """
    if not app.redis.exists(app.keys.history) or not _alone.acquire(blocking=False):
        return 0
    try:
        return _in_database("record history")
    finally:
        _alone.release()


@app.task(name="gaelp.maintenance.prune_history", ignore_result=True)
def prune_history() -> int:
    """Throw away what ended longer ago than GAELP_HISTORY_KEEP_S; returns how many."""
    with _alone:
        return _in_database("prune history")


@app.task(name="gaelp.maintenance.prune_batches", ignore_result=True)
def prune_batches() -> int:
    """Throw away batches that were over longer ago than GAELP_BATCH_KEEP_S; returns how many."""
    with _alone:
        return _in_database("prune batches")


def _in_database(duty: str) -> int:
    """Do it where the database is; 0 where that is not here, or does not serve us."""
    from gaelp_tasks.db.address import is_here  # noqa: PLC0415  only a running task needs what these bring
    from gaelp_tasks.runtime import shared_runtime  # noqa: PLC0415

    try:
        url = app.settings.sql_url
        if not is_here(url):
            return 0
        from gaelp_tasks.services import batches, history  # noqa: PLC0415  SQLAlchemy is no small thing

        duties = {
            "record history": history.record,
            "prune history": history.prune,
            "prune batches": batches.prune,
        }
        db, loop = database_at(url, "maintenance"), shared_runtime()
        try:
            loop.run(db.migrate())
            done = duties[duty](app, db, loop)
        finally:
            loop.run(db.close())
    except (DatabaseUnavailable, SettingsError, ModuleNotFoundError) as error:
        _warn(str(error))
        return 0
    _warn.cache_clear()
    return done


@cache
def _warn(sentence: str) -> None:
    """Once, until all is well again: beat calls every few seconds."""
    logger.warning(sentence)
