"""`gaelp.maintenance.*`: what beat has done now and then."""

from gaelp_tasks.celery_app import app
from gaelp_tasks.connections import Refused

__all__ = ["expire_abandoned_streams"]

ABANDONED_S = 86_400


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
