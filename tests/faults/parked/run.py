"""One run: a real worker with many tasks that wait for their time, and some whose time comes."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import uuid4

import psutil
import redis

from faults.history.probes import PATH
from faults.mutations.run import model_server
from faults.parked.noted import noted
from gaelp_tasks import app
from support.eventually import eventually
from support.redis_server import RedisServer
from support.worker import WorkerProcess

__all__ = ["Finding", "run"]

FAR = timedelta(days=30)
AT_ONCE = 1_000  #: messages in one pipeline
BACKLOG = 20_000  #: messages that the worker has not parked yet
WARM = 200  #: tasks before its memory is looked at
AHEAD_S = 1.0  #: from the publishing of one to the moment at which it may be due
GIVE_UP_S = 30.0  #: after the last was due


class Finding(NamedTuple):
    """What a run has shown."""

    parked: int
    grown_bytes: int  #: the worker's memory at its highest, less what it had before
    redis_bytes: int  #: of Redis, for all that was parked
    parking_s: float
    late_s: list[float]  #: start less due, sorted; of each that came due meanwhile
    never: int  #: due and not started

    def late(self, percent: float) -> float:
        """A percentile, seconds."""
        return self.late_s[min(len(self.late_s) - 1, int(len(self.late_s) * percent / 100))]


def run(
    parked: int,
    due: int,
    within_s: float,
    seed: int,
    server: RedisServer,
    folder: Path,
    *,
    copied: bool = False,
) -> Finding:
    """`parked` wait for a month; `due` come due at random moments within `within_s` while they do.

    The many are one real message of a publisher under new ids, written to its queue in pipelines; the
    worker's own claims park them. `copied`: the claim parks the first, and its record is copied for the
    others. On an empty Redis, which the app of this process talks to.
    """
    with closing(redis.Redis.from_url(server.url)) as store, model_server() as node:
        settings = {"GAELP_BROKER_URL": server.url, "GAELP_OLLAMA_NODES": node, **PATH}
        settings["GAELP_NUM_PARALLEL"] = "16"
        with WorkerProcess(folder, "--include=faults.parked.noted", **settings) as worker:
            for handle in [noted.delay() for _ in range(WARM)]:
                handle.get(timeout=60)
            memory = _Memory(worker.process.pid)
            used = store.info("memory")["used_memory"]
            began = time.monotonic()
            for some in _far(store, 1 if copied else parked):
                store.lpush("batch", *some)
                memory.look()
            if copied:
                eventually(lambda: store.zcard(app.keys.parked))
                _copy(store, parked - 1)
            eventually(lambda: memory.look() or store.zcard(app.keys.parked) == parked, within_s=600)
            parking_s = time.monotonic() - began
            redis_bytes = store.info("memory")["used_memory"] - used
            late = _late(due, within_s, Random(seed), memory)
            assert store.zcard(app.keys.parked) == parked, "none of the others was touched"
            return Finding(parked, memory.grown, redis_bytes, parking_s, late, due - len(late))


class _Memory:
    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._most = self._process.memory_info().rss

    def look(self) -> None:
        self._most = max(self._most, self._process.memory_info().rss)

    @property
    def grown(self) -> int:
        return self._most - self._before


def _copy(store: redis.Redis, number: int) -> None:
    [(name, due)] = store.zrange(app.keys.parked, 0, -1, withscores=True)
    record = store.hget(app.keys.parked_messages, name)
    for at in range(0, number, AT_ONCE):
        ids = [str(uuid4()).encode() for _ in range(min(AT_ONCE, number - at))]
        with store.pipeline(transaction=True) as pipe:
            pipe.hset(app.keys.parked_messages, mapping={one: record.replace(name, one) for one in ids})
            pipe.zadd(app.keys.parked, dict.fromkeys(ids, due))
            pipe.execute()


def _far(store: redis.Redis, number: int) -> Iterator[list[str]]:
    """Messages for the queue, some at a time."""
    app.redis.delete("aside")
    sent = noted.apply_async(eta=datetime.now(UTC) + FAR, queue="aside")
    text = store.rpop("aside").decode().replace('"aside"', '"batch"')
    for at in range(0, number, AT_ONCE):
        while store.llen("batch") > BACKLOG:
            time.sleep(0.01)
        yield [text.replace(sent.id, str(uuid4())) for _ in range(min(AT_ONCE, number - at))]


def _late(due: int, within_s: float, rng: Random, memory: _Memory) -> list[float]:
    times: dict[str, float] = {}
    for _ in range(due):
        at = time.time() + AHEAD_S + rng.uniform(0, within_s)
        sent = noted.apply_async(eta=datetime.fromtimestamp(at, UTC), queue="interactive")
        times[sent.id] = at
    last = max(times.values())
    started: dict[str, float] = {}

    def all_started() -> bool:
        memory.look()
        missing = [task_id for task_id in times if task_id not in started]
        for record in app.redis.mget([f"celery-task-meta-{task_id}" for task_id in missing]):
            if record and (told := json.loads(record))["status"] == "SUCCESS":
                started[told["task_id"]] = told["result"]
        return len(started) == due or time.time() > last + GIVE_UP_S

    eventually(all_started, within_s=AHEAD_S + within_s + 2 * GIVE_UP_S)
    return sorted(started[task_id] - times[task_id] for task_id in started)
