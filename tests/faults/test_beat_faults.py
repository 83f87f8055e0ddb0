"""The leading beat killed at the due second, again and again: every due run is published once, within 5 s.

Three kills for every commit; `pytest tests/faults/test_beat_faults.py --long -s`: fifty, and the delays.
"""

import asyncio
import json
import random
import threading
from datetime import UTC, datetime, timedelta
from time import time
from uuid import uuid5

import pytest

from gaelp_beat.fixed import id_of, run_id
from gaelp_tasks import app
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.schedules import Schedules
from gaelp_tasks.models.schedule import Schedule
from support.beat import BeatProcess
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(3600)]

LATE_S = 5.0
SECOND = timedelta(seconds=1)
PROGRAM = ("celery", "-A", "own:app", "beat", "--loglevel=INFO")
OWN = """
from gaelp_tasks import app
app.conf.beat_schedule = {"own": {"task": "shop.own", "schedule": 1.0, "options": {"queue": "own"}}}
"""


class Arrivals:
    """Takes what is published off its queues, and notes when each message came."""

    def __init__(self, redis):
        self.at = {"kept": [], "own": []}  # queue -> (task id, Unix time)
        self._redis = redis
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self):
        while not self._over.is_set():
            found = self._redis.brpop(list(self.at), timeout=0.2)
            if found:
                self.at[found[0]].append((json.loads(found[1])["headers"]["id"], time()))

    def stop(self):
        self._over.set()
        self._thread.join()


@pytest.fixture
def arrivals(broker):
    app.redis.flushdb()
    with broker.client() as client:
        taking = Arrivals(client)
        yield taking
        taking.stop()


async def keep(url):
    """A schedule of each second, every one of which is wanted."""
    db = Database(url)
    await db.migrate()
    each = Schedule.parse(
        {
            "name": "each second",
            "task": "shop.kept",
            "queue": "kept",
            "interval_s": 1,
            "missed": "all",
            "overlap": "queue",
        }
    )
    kept = await Schedules(db, "").add(each, datetime.now(UTC))
    await db.close()
    return kept


def leading(beats):
    """The one that leads, and another than it."""
    lease = app.redis.get(app.keys.beat) or ""
    return next((beat for beat in beats if f":{beat.pid}:" in lease), None)


def test_every_due_run_is_published_once_though_the_leading_beat_is_killed_at_its_second(
    request, broker, arrivals, tmp_path
):
    kills = 50 if request.config.getoption("--long") else 3
    jitter = random.Random(7)
    (tmp_path / "own.py").write_text(OWN)
    settings = {"program": PROGRAM, "GAELP_BROKER_URL": broker.url}
    url = f"sqlite:///{tmp_path / 'gaelp.db'}"
    with BeatProcess(tmp_path, name="a", **settings) as a, BeatProcess(tmp_path, name="b", **settings) as b:
        kept = asyncio.run(keep(url))
        eventually(lambda: all(arrivals.at.values()), what="the first runs of both kinds")
        for _ in range(kills):
            leader = eventually(lambda: leading((a, b)), what="one leads")
            due = int(time()) + 1 + jitter.uniform(-0.05, 0.3)
            eventually(lambda until=due: time() >= until)
            leader.kill()
            leader.start()
        end = time()
        eventually(
            lambda: int(app.redis.hget(app.keys.beat_published, str(kept.id))) >= end * 1000,
            what="everything that was due until now",
        )
        assert leading((a, b)), "somebody leads"
    arrivals.stop()
    late = [*kept_late(kept, arrivals.at["kept"], end), *own_late(arrivals.at["own"], end)]
    late.sort()
    print(  # noqa: T201  the figures of the long form
        f"{kills} kills, {len(late)} runs, each once; late by {late[len(late) // 2]:.2f} s on the median, "
        f"{late[-1]:.2f} s at most."
    )
    assert late[-1] <= LATE_S


def kept_late(kept, arrived, end):
    """How late the run of each second came; each must have come once."""
    came = dict(arrived)
    assert len(came) == len(arrived), "published twice"
    due = [kept.next_due + count * SECOND for count in range(int(end - kept.next_due.timestamp()))]
    assert {str(uuid5(kept.id, at.isoformat())) for at in due} <= came.keys(), "left out"
    return [came[kept.run_id(at)] - at.timestamp() for at in due]


def own_late(arrived, end):
    """The same of the entry of Celery's kind, whose times count from the first."""
    came = dict(arrived)
    assert len(came) == len(arrived), "published twice"
    last_ms = int(app.redis.hget(app.keys.beat_published, id_of("own")))
    due = [last_ms - 1000 * count for count in range(len(came))]
    assert {run_id("own", at) for at in due} == came.keys(), "left out"
    return [came[run_id("own", at)] - at / 1000 for at in due]
