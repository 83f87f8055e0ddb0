"""A batch to be conducted: on a real SQLite, over a Redis and a clock of the test."""

import asyncio
import io
import json
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random

from gaelp_tasks.connections import Trouble
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Ended
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import take_in, write_out
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.batch_lines import Redis, verdict
from gaelp_tasks.tasks.conducting import Conductor, Paces

BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
WINDOW = 4


class Killed(BaseException):
    """The process is gone in this very moment."""


class Node:
    """The lines' invocations: who is published runs later; `records` is what is known of each id."""

    def __init__(self, rng=None):
        self.rng = rng or Random(0)
        self.queue = []
        self.claims = Counter()
        self.ran = Counter()
        self.records = {}
        self.stopped = set()
        self.most_out = 0
        self.life, self.suspects = "first", 0
        self.away = False
        self.fails = set()  # ids whose runs fail
        self.marks = {}  # id -> how long, in seconds, a message of it finds that it was told

    def work(self, count=1):
        """Take so many messages, as workers do: what was told before is dropped."""
        for _ in range(min(count, len(self.queue))):
            task_id = self.queue.pop(0)
            self.claims[task_id] += 1
            if self.claims[task_id] > 1 and self.records.get(task_id, {}).get("status") == "SUCCESS":
                continue
            self.ran[task_id] += 1
            if task_id in self.fails:
                told = {"exc_type": "NodeFailed", "exc_message": ["It broke."]}
                self.records[task_id] = {"status": "FAILURE", "result": told}
            else:
                reason = "cancelled" if task_id in self.stopped else "stop"
                self.records[task_id] = {"status": "SUCCESS", "result": _result(task_id, reason)}

    def _there(self):
        if self.away:
            raise Trouble("away")

    # --- what a conductor asks ---

    def publish(self, lines):
        self._there()
        for line in lines:
            self.queue.append(line.task_id)
        self.most_out = max(self.most_out, len(set(self.queue)))
        refused = [line for line in lines if "REFUSE" in line.arguments]
        self.queue = [task_id for task_id in self.queue if task_id not in {line.task_id for line in refused}]
        return [Ended(line.number, LineOutcome.FAILED, "InvalidInvocation", "No.") for line in refused]

    def ended(self, ids):
        self._there()
        return {one: self.records[one] for one in ids if self.records.get(one, {}).get("result")}

    def wasted(self, ids):
        self._there()
        return {one: self.claims[one] - 1 for one in ids if self.claims[one] > 1}

    def clear(self, ids):
        self._there()
        for one in ids:
            self.records.pop(one, None)
            self.claims.pop(one, None)

    def void(self, ids, *, all_of_them, for_s):
        self._there()
        for one in ids:
            if all_of_them or one in self.records:
                self.records[one] = {"status": "SUCCESS", "result": None}
                self.marks[one] = for_s

    def stop(self, ids):
        self._there()
        self.stopped.update(ids)

    def redis(self):
        self._there()
        return Redis(self.life, self.suspects)


def _result(task_id, reason):
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return {"id": task_id, "text": task_id, "model": "m", "stop_reason": reason, "usage": usage}


class Mortal:
    """Something of which each call may be the last thing that its caller did."""

    def __init__(self, inner, rng, odds):
        self._inner, self._rng, self._odds = inner, rng, odds

    def __getattr__(self, name):
        call = getattr(self._inner, name)
        if name in {"published", "asked"} or not callable(call):
            return call

        def die():
            if self._rng.random() < self._odds:
                raise Killed

        if asyncio.iscoroutinefunction(call):

            async def then(*args, **kwargs):
                die()
                told = await call(*args, **kwargs)
                die()
                return told

            return then

        def blocking(*args, **kwargs):
            die()
            if name == "publish" and self._rng.random() < self._odds:  # half-way
                call(args[0][: len(args[0]) // 2])
                raise Killed
            told = call(*args, **kwargs)
            die()
            return told

        return blocking


class Scene:
    """One batch, a node, and a clock that goes on when somebody sleeps."""

    def __init__(self, batches, batch, node):
        self.batches, self.batch, self.node = batches, batch, node
        self.at = 0.0
        self.per_sleep = 2  # messages that are worked off meanwhile
        self.on_sleep = lambda: None
        self.paces = Paces()
        self.lives = 0

    async def sleep(self, seconds):
        self.at += max(seconds, 0.001)
        self.node.work(self.per_sleep)
        self.on_sleep()
        await asyncio.sleep(0)

    def conductor(self, *, batches=None, lines=None, leave=lambda: None, most_deaths=100):
        self.lives += 1
        return Conductor(
            self.batch.id,
            name=f"life {self.lives}",
            batches=batches or self.batches,
            lines=lines or self.node,
            verdict=verdict,
            window=WINDOW,
            most_deaths=most_deaths,
            leave=leave,
            paces=self.paces,
            tick=lambda: self.at,
            now=lambda: BEGIN + timedelta(seconds=self.at),
            sleep=self.sleep,
        )

    async def run(self, *, died=False, **how):
        return await self.conductor(**how).run(ticket=0, died=died)

    async def told(self):
        return (await self.batches.find(self.batch.id))[0]

    async def ids(self, *, errors=False):
        out = io.StringIO()
        await write_out(self.batches, self.batch, out, errors=errors)
        return [json.loads(line)["custom_id"] for line in out.getvalue().splitlines()]


@asynccontextmanager
async def scenes(folder):
    """Makes batches of so many lines, ready to be conducted: `scene(20)`."""
    db = Database(f"sqlite:///{folder}/gaelp.db")
    await db.migrate()

    async def make(count=20, *, node=None, within_s=None, prompt="p", hours=None):
        batches = Batches(db)
        batch = await batches.create(tier=Tier.BATCH, name="", now=BEGIN, hours=hours)
        line = json.dumps({"prompt": prompt}).encode() + b"\n"
        file = io.BytesIO(line * count)
        read = await take_in(
            batches, batch, file, Defaults(), Settings(), within_s=within_s, now=lambda: BEGIN
        )
        return Scene(batches, read, node or Node())

    try:
        yield make
    finally:
        await db.close()


def numbers(first, last):
    return [str(number) for number in range(first, last + 1)]
