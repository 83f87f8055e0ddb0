"""A batch whose workers are killed again and again: each line ends once, and the order of the file is kept.

A short form for every commit; `pytest tests/faults/test_batch_faults.py --long`: see docs/batch.md.
"""

import asyncio
import io
import json
import re
import signal
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
from kombu import pools

from faults.history.cluster import Cluster, journal_in
from faults.history.model_server import model_server, prompt
from faults.history.subjects import Ours
from gaelp_tasks import app
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch import BatchState
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import take_in, write_out
from gaelp_tasks.tasks.batch import call_for

pytestmark = [pytest.mark.redis, pytest.mark.slow]

SLOTS = 8
WORKERS = 2
RECEIVED = re.compile(r"\[(\S+ \S+): \S+ Task gaelp\.run_batch\[\S+\] received")


class Batch:
    """A file of so many lines, taken in and called for; each takes its node so many seconds."""

    def __init__(self, loop, db, count, seconds, pace_s):
        self.loop, self.batches = loop, Batches(db)
        tokens = 1 + round(seconds / pace_s)
        lines = (
            json.dumps({"custom_id": f"c{number}", "prompt": prompt(f"c{number}", tokens, pace_s)})
            for number in range(count)
        )
        file = io.BytesIO("\n".join(lines).encode())
        made = loop.run(self.batches.create(tier=Tier.BATCH, name="", now=datetime.now(UTC)))
        self.batch = loop.run(take_in(self.batches, made, file, Defaults(), app.settings))
        call_for(self.batch.id, "", 0)

    def look(self):
        [self.batch] = self.loop.run(self.batches.find(self.batch.id))
        return self.batch

    def results(self):
        out = io.StringIO()
        self.loop.run(write_out(self.batches, self.batch, out, errors=False))
        return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture
def scene(broker, tmp_path):
    """A database, and workers beside a node that journals which lines it was asked."""
    pools.reset()
    app._after_fork()
    app.redis.flushdb()
    url = f"sqlite:///{tmp_path}/gaelp.db"
    with asyncio.Runner() as loop, model_server(tmp_path, journal_in(tmp_path)) as node:
        db = Database(url)
        loop.run(db.migrate())
        settings = (("GAELP_DATABASE_URL", url), ("GAELP_BATCH_WINDOW", "64"))
        subject = Ours(node=node, slots=SLOTS, settings=settings)
        cluster = Cluster(subject, broker, tmp_path, workers=WORKERS)
        try:
            yield cluster, lambda count, seconds: Batch(loop, db, count, seconds, subject.pace_s)
        finally:
            cluster.close()
            loop.run(db.close())


def conductor(cluster):
    """The worker that has taken a call for the batch last."""

    def taken_at(worker):
        return max(RECEIVED.findall(worker.child.output()), default="")

    return max(cluster.workers, key=taken_at)


def kill(cluster, worker):
    worker.signal(signal.SIGKILL)
    cluster.bury(worker)
    cluster.look()


def whole(cluster, batch, count, kills):
    """Each line has ended once, in order; a node was asked again only for what ran when its worker died."""
    told = batch.look()
    assert (told.state, told.counts.done, told.counts.total) == (BatchState.COMPLETED, count, count), told
    results = batch.results()
    assert [line["custom_id"] for line in results] == [f"c{number}" for number in range(count)]
    cluster.look()
    asked = Counter(start.id for start in cluster.starts)
    assert asked.keys() == {f"c{number}" for number in range(count)}
    again = asked.total() - count
    assert again <= kills * SLOTS, f"{again} runs too many after {kills} kills"
    assert cluster.quit == [], "nobody ended but those who were killed"
    return again


def test_a_batch_whose_conductor_is_killed_twice_ends_whole(scene):
    cluster, submit = scene
    batch = submit(300, 0.1)
    for reached in (30, 150):
        assert cluster.until(lambda reached=reached: batch.look().counts.done >= reached, within_s=90)
        kill(cluster, conductor(cluster))
    assert cluster.until(lambda: batch.look().is_over, within_s=120), batch.look()
    whole(cluster, batch, 300, kills=2)


@pytest.mark.timeout(3600)
def test_ten_thousand_lines_outlive_a_worker_killed_every_twenty_seconds(scene, request):
    if not request.config.getoption("--long"):
        pytest.skip("takes ten minutes and more: --long")
    cluster, submit = scene
    batch = submit(10_000, 0.2)
    began, kills, most_bytes = time.monotonic(), 0, 0
    while not batch.look().is_over:
        cluster.pause(20)
        if batch.look().is_over:
            break
        kill(cluster, conductor(cluster) if kills % 2 else cluster.workers[0])
        kills += 1
        most_bytes = max(most_bytes, app.redis.info("memory")["used_memory"])
        assert time.monotonic() - began < 3000, batch.look()
    again = whole(cluster, batch, 10_000, kills)
    took_s = time.monotonic() - began
    request.config.get_terminal_writer().line(
        f"{took_s:.0f} s, {kills} kills, {again} runs again, Redis {most_bytes / 1024**2:.1f} MiB at most"
    )
