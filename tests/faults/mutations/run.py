"""One run: a real worker among mutated messages and good ones; then its dead letters go back, and away."""

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import redis

from faults.mutations.capture import PROMPT, Captured, capture, renamed
from faults.mutations.judge import Aftermath, Verdict, id_of, judge
from faults.mutations.mutate import Mutant, mutate
from gaelp_tasks import app, dead_letters, embed, invoke_agent
from support.redis_server import RedisServer
from support.scripted_server import ScriptedServer
from support.worker import WorkerProcess

__all__ = ["SETTINGS", "model_server", "run"]

GOOD_EVERY = 10  #: one good message after so many mutated ones
BACKLOG = 300  #: messages that may wait while more are published
DUE_SOON_S = 120.0  #: what is parked for longer than this is left where it is
QUIET_S = 1.0  #: without anything to do
STUCK_S = 30.0  #: without any progress, and no more is waited for
PARTS = {  # of a prompt in base64, at each of the three places where it may begin
    base64.b64encode(b"x" * at + PROMPT.encode())[4:-4].decode() for at in range(3)
}
#: a mutated name may hold brackets and line breaks
ENDED = re.compile(r"\[([^\[\]\n]+)\] (?:succeeded|raised|ignored|retry)")
DISCARDED = re.compile(r"Discarding revoked task: .*\[([^\[\]\n]+)\]")
LONG_AGO = "2020-01-01T00:00:00+00:00"
#: for the worker: little patience, and little room, so that huge messages are refused in a short run
SETTINGS = {
    "GAELP_NUM_PARALLEL": "8",
    "GAELP_RETRY_ATTEMPTS": "2",
    "GAELP_RETRY_BASE_S": "0.1",
    "GAELP_RETRY_CAP_S": "0.2",
    "GAELP_SNOOZE_S": "0.1",
}


@contextmanager
def model_server() -> Iterator[str]:
    """The address of a small healthy model server, on a thread of this process."""
    ready: list[str] = []
    loop = asyncio.new_event_loop()
    over = asyncio.Event()
    up = threading.Event()

    async def serve() -> None:
        async with ScriptedServer() as server:
            ready.append(server.url)
            up.set()
            while not over.is_set():
                server.requests.clear()  # a long run would keep them all
                await asyncio.sleep(1)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    up.wait()
    try:
        yield ready[0]
    finally:
        over.set()
        thread.join()
        loop.close()


def run(messages: int, seed: int, server: RedisServer, folder: Path) -> Verdict:
    """On an empty Redis, which the app of this process talks to; the worker's log is left in `folder`."""
    with closing(redis.Redis.from_url(server.url)) as store, model_server() as node:
        templates = capture(store, server.url)
        store.flushall()
        settings = SETTINGS | {"GAELP_BROKER_URL": server.url, "GAELP_OLLAMA_NODES": node}
        with WorkerProcess(folder, **settings) as worker:
            verdict = _Run(store, worker, templates, Random(seed)).verdict(messages)
        app.close()  # or handles would ask a server that has gone for their results
        return verdict


class _Run:
    def __init__(
        self, store: redis.Redis, worker: WorkerProcess, templates: list[Captured], rng: Random
    ) -> None:
        self.store, self.worker, self.templates, self.rng = store, worker, templates, rng
        self.queues = sorted({template.queue for template in templates})
        self.mutants: list[Mutant] = []
        self.good: list[str] = []

    def verdict(self, messages: int) -> Verdict:
        self.publish_expired()
        while len(self.mutants) < messages:
            self.publish()
            if len(self.mutants) % BACKLOG == 0:
                self.wait(lambda: self.waiting() < BACKLOG, within_s=30)
        self.drain()
        found = self.aftermath()
        verdict = judge(found)
        return verdict._replace(broken=verdict.broken + self.replayed(found) + self.purged())

    def publish_expired(self) -> None:
        """One of each kind: they are dropped unread, and not every task stores that as its result."""
        for template in map(renamed, self.templates):
            told = json.loads(template.message)
            if "id" in told["headers"]:  # protocol 1 keeps it elsewhere
                told["headers"]["expires"] = LONG_AGO
                mutant = Mutant("headers", json.dumps(told).encode())
                self.store.lpush(template.queue, mutant.message)
                self.mutants.append(mutant)

    def publish(self) -> None:
        template = renamed(self.rng.choice(self.templates))
        mutant = mutate(template.message, self.rng)
        self.store.lpush(template.queue, mutant.message)
        self.mutants.append(mutant)
        if len(self.mutants) % GOOD_EVERY == 0:
            sent = embed.delay([PROMPT]) if self.rng.random() < 0.3 else invoke_agent.delay(PROMPT)
            self.good.append(sent.id)

    def waiting(self) -> int:
        return sum(self.store.llen(queue) for queue in self.queues)

    def left(self) -> int:
        soon = (time.time() + DUE_SOON_S) * 1000
        return (
            self.waiting()
            + self.store.hlen(app.keys.unacked)
            + self.store.zcount(app.keys.parked, "-inf", soon)
        )

    def drain(self) -> None:
        """Until nothing is left; what does not go away is judged."""
        self.dwindle()
        quiet_from = time.monotonic()
        self.wait(lambda: self.left() or time.monotonic() - quiet_from > QUIET_S, within_s=STUCK_S)
        self.dwindle()
        self.wait(lambda: not self.running(), within_s=5)

    def dwindle(self) -> None:
        """Until nothing is left, or no less for a while: a machine that others keep busy is slow."""
        left = self.left()
        while left:
            self.wait(partial(self.less_than, left), within_s=STUCK_S)
            before, left = left, self.left()
            if left >= before:
                return

    def less_than(self, before: int) -> bool:
        return self.left() < before

    def wait(self, look: Callable[[], object], *, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not look() and time.monotonic() < deadline and self.worker.process.poll() is None:
            time.sleep(0.05)

    def running(self) -> int:
        if self.worker.process.poll() is not None:
            return 0
        return sum(len(node.running) + len(node.unplaced) for node in self.worker.announced().values())

    def aftermath(self) -> Aftermath:
        ids = {id_of(mutant.message) for mutant in self.mutants} | set(self.good)
        log = self.worker.log()
        return Aftermath(
            mutants=self.mutants,
            good=self.good,
            states=dict(self.states({task_id for task_id in ids if task_id})),
            ended={*ENDED.findall(log), *DISCARDED.findall(log)},
            dead=[letter.message for letter in dead_letters.listed(app, most=10**9)],
            parked=self.parked(),
            queued=self.left(),
            running=self.running(),
            alive=self.worker.process.poll() is None,
            restarts=log.count("Connection to broker lost") + log.count("Restarting event loop"),
            leaks=[
                line for line in log.splitlines() if PROMPT in line or any(part in line for part in PARTS)
            ],
        )

    def states(self, ids: Collection[str]) -> Iterator[tuple[str, str]]:
        for task_id in ids:
            key = b"celery-task-meta-" + task_id.encode(errors="replace")
            if record := self.store.get(key):
                yield task_id, json.loads(record)["status"]

    def parked(self) -> Collection[bytes]:
        return [record.partition(b"\n")[2] for record in self.store.hvals(app.keys.parked_messages)]

    def replayed(self, before: Aftermath) -> list[str]:
        """Put all dead letters back: each comes back, or runs."""
        ids = [letter.id for letter in dead_letters.listed(app, most=10**9)]
        told = dead_letters.replay(app, ids)
        self.drain()
        after = self.aftermath()
        sentences = [] if told == len(ids) else [f"replay: {told} of {len(ids)} were put back"]
        of_dead = set(before.dead)
        again = judge(
            replace(after, mutants=[mutant for mutant in self.mutants if mutant.message in of_dead], good=())
        )
        return sentences + [f"after the replay: {sentence}" for sentence in again.broken]

    def purged(self) -> list[str]:
        ids = [letter.id for letter in dead_letters.listed(app, most=10**9)]
        thrown = dead_letters.purge(app, ids)
        left = dead_letters.count(app) + self.store.hlen(app.keys.dead_messages)
        return [] if thrown == len(ids) and not left else [f"purge: {thrown} of {len(ids)}, {left} are left"]
