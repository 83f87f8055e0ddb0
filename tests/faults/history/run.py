"""One run: publish, strike, drain, write down what happened."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import redis

from faults.history import plain
from faults.history.cluster import READY_S, Cluster, Worker
from faults.history.faults import Fault
from faults.history.observer import Observer
from faults.history.record import Acceptance, History
from faults.history.subjects import Subject
from gaelp_tasks import app as our_app
from gaelp_tasks import counts
from support.redis_server import RedisServer

SETTLED_S = 3.0  #: of silence with no message queued or held: longer than a task takes, a zombie's too
#: hashes of messages that workers hold, plain Celery's and ours, and of those that wait for their time
HELD = ("unacked", "gaelp:unacked", "gaelp:parked:messages")
DEAD = "gaelp:dead:messages"  #: hash of dead letters
SUSPECTS = "gaelp:suspects"  #: list of messages that wait to run alone
TELL_S = 20.0  #: between two words on how far it is


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do; the seed decides the faults, their order, victims and moments."""

    faults: Sequence[Fault]
    strikes: int
    tasks: int  #: published in equal parts before each strike
    seed: int
    seconds: Sequence[float] = (0.0,)  #: that the tasks take, in turn
    workers: int = 2
    at_once: int = 1  #: workers that are frozen, or stopping, at the same time
    settle_s: float = 0.0  #: before a strike all workers have been ready for so long
    patience_s: float = 2.5  #: half a lease: without Redis for longer, workers stop what they run
    spread_s: float = 0.2  #: a strike comes at any moment within this after its victim was seen at work
    tell: Callable[[str], object] = lambda _: None  #: hears now and then how far it is
    quiet_s: float = 30.0  #: a drain in which nothing was started or answered for this long is over


def run(subject: Subject, plan: Plan, server: RedisServer, folder: Path) -> History:
    """Do it on an empty Redis; the logs of the workers are left in `folder`."""
    began = time.monotonic()
    os.environ[plain.URL] = server.url  # plain Celery's publisher reads it there
    proxies = any(fault.needs_proxies for fault in plan.faults)
    cluster = Cluster(
        subject, server, folder, workers=plan.workers, proxies=proxies, patience_s=plan.patience_s
    )
    try:
        with Observer(server) as observer:
            return _Run(subject, plan, cluster, observer).history(began)
    finally:
        cluster.close()


class _Run:
    def __init__(self, subject: Subject, plan: Plan, cluster: Cluster, observer: Observer) -> None:
        self.subject, self.plan, self.cluster, self.observer = subject, plan, cluster, observer
        self.rng = Random(plan.seed)
        self.acknowledged: dict[str, float] = {}
        self.doubtful: set[str] = set()
        self.strikes: dict[str, int] = {}
        self.idle = 0
        self.asked = 0
        self.open: dict[str, str] = {}  # what was started, where last, and has not been heard to be answered
        self.answered: set[str] = set()  # as far as it was heard
        self.heard = self.seen = 0  # answers and starts that are in there
        self.began = self.told_at = time.monotonic()

    def history(self, began: float) -> History:
        cluster, plan = self.cluster, self.plan
        started = cluster.until(lambda: all(worker.ready_at is not None for worker in cluster.workers))
        assert started, "workers do not start"
        # all at first: how many workers can be struck at a moment is chance, and changes what the seed gives
        faults = self.rng.choices(plan.faults, k=plan.strikes) if plan.strikes else []
        for number, fault in enumerate(faults, start=1):
            self.settle()
            self.publish(plan.tasks * number // plan.strikes)
            self.strike(fault)
        self.publish(plan.tasks)
        found = self.drain()
        return History(
            acknowledged=self.acknowledged,
            doubtful=frozenset(self.doubtful),
            starts=tuple(cluster.starts),
            acceptances=(*self.observer.heard, *found),
            outages=tuple(cluster.outages),
            stops=tuple(cluster.stops),
            left=frozenset(self.left()),
            buried=self.buried(),
            suspects=self.suspects(),
            refused=counts.counted(our_app).get(counts.FENCED, 0) if self.subject.fenced else None,
            quit=tuple(cluster.quit),
            strikes=self.strikes,
            idle=self.idle,
            took_s=time.monotonic() - began,
        )

    def publish(self, up_to: int) -> None:
        """Ask for work until so many were asked for; nothing is ever asked for twice."""
        while self.asked < up_to:
            task_id = f"task-{self.asked:06d}"
            seconds = self.plan.seconds[self.asked % len(self.plan.seconds)]
            self.asked += 1
            try:
                ids = self.subject.publish(task_id, seconds)
            except Exception as error:  # noqa: BLE001  whatever the publisher sees, it was not told yes
                if not self.doubtful:
                    self.plan.tell(f"{task_id} was not taken: {error}")
                self.doubtful.add(task_id)
            else:
                self.acknowledged.update(dict.fromkeys(ids, time.monotonic()))

    def strike(self, fault: Fault) -> None:
        self.tell()
        room = self.cluster.until(
            lambda: self.cluster.under_way < self.plan.at_once, within_s=READY_S + self.plan.quiet_s
        )
        assert room, "a strike does not end"
        while True:
            victim = self.victim()
            self.cluster.pause(self.rng.uniform(0.0, self.plan.spread_s))
            if victim in self.cluster.workers:
                break  # else it has ended by itself meanwhile
        if fault.needs_victim and not self.waiting():
            self.idle += 1
        self.strikes[fault.name] = self.strikes.get(fault.name, 0) + 1
        fault.strike(self.cluster, victim, self.rng)

    def victim(self) -> Worker:
        """A worker that is at work, or where tasks take no time one that has been."""
        able = self.cluster.until(self.able)
        assert able, "no worker does anything"
        return self.rng.choice(able)

    def settle(self) -> None:
        """Where the plan has it, wait for all: who takes over is free and has seen the victim alive."""
        if self.plan.settle_s:
            all_have = self.cluster.until(lambda: len(self.settled()) == self.plan.workers)
            assert all_have, "workers do not settle"

    def settled(self) -> list[Worker]:
        """Who has been ready for long enough and is not struck."""
        latest = time.monotonic() - self.plan.settle_s
        return [
            worker
            for worker in self.cluster.workers
            if worker.ready_at is not None and worker.ready_at <= latest and not worker.struck
        ]

    def able(self) -> list[Worker]:
        """Who may be struck now."""
        settled = self.settled()
        if not max(self.plan.seconds):
            return [worker for worker in settled if worker.busy]
        self.hear()
        at_work = set(self.open.values())
        return [worker for worker in settled if worker.name in at_work]

    def hear(self) -> None:
        """Note what has been started and answered since the last time."""
        answers, starts = self.observer.heard[self.heard :], self.cluster.starts[self.seen :]
        self.heard += len(answers)
        self.seen += len(starts)
        self.answered.update(told.id for told in answers)
        self.open.update((start.id, start.worker) for start in starts)
        for task_id in self.open.keys() & self.answered:
            del self.open[task_id]

    def tell(self) -> None:
        """Say how far it is, now and then."""
        now = time.monotonic()
        if now - self.told_at < TELL_S:
            return
        self.told_at = now
        self.hear()
        self.plan.tell(
            f"{now - self.began:.0f} s: {sum(self.strikes.values())} of {self.plan.strikes} strikes, "
            f"{self.asked} of {self.plan.tasks} asked, {len(self.answered)} answers heard"
        )

    def drain(self) -> list[Acceptance]:
        """Wait until nothing is held and nothing moves, within bounds; returns what clients can read."""
        missing, moved_at, seen = set(self.acknowledged), time.monotonic(), (0, 0, 0)
        while True:
            self.cluster.pause(0.2)
            self.tell()
            heard = tuple(self.observer.heard)
            missing -= {told.id for told in heard}
            with closing(self.cluster.server.client()) as store:
                missing -= {told.id for told in self.subject.answers(store, missing)}
            moves = (len(self.cluster.starts), len(heard), len(missing))
            if moves != seen:
                seen, moved_at = moves, time.monotonic()
            quiet_s = time.monotonic() - moved_at
            if self.cluster.under_way:
                continue
            if quiet_s > self.plan.quiet_s or (quiet_s > SETTLED_S and not self.left()):
                break
        with closing(self.cluster.server.client()) as store:
            return list(self.subject.answers(store, self.acknowledged.keys() | self.doubtful))

    def waiting(self) -> bool:
        """Whether a task is queued."""
        with closing(self.cluster.server.client()) as store:
            return next(store.scan_iter(_type="list", count=1000), None) is not None

    def left(self) -> set[str]:
        """Ids of messages that wait, or that a worker holds."""
        with closing(self.cluster.server.client()) as store:
            return left(store)

    def buried(self) -> tuple[str, ...]:
        """The reason for each dead letter, with its id."""
        with closing(self.cluster.server.client()) as store:
            return buried(store)

    def suspects(self) -> int:
        """How many messages wait to run alone."""
        with closing(self.cluster.server.client()) as store:
            return store.llen(SUSPECTS)


def left(store: redis.Redis) -> set[str]:
    """Ids of messages that wait, or that a worker holds."""
    lists = [store.lrange(key, 0, -1) for key in store.scan_iter(_type="list", count=1000)]
    held = [store.hvals(key) for key in HELD]
    return {task_id for texts in (*lists, *held) for text in texts if (task_id := asked_for(text))}


def buried(store: redis.Redis) -> tuple[str, ...]:
    """The reason for each dead letter, with its id."""
    return tuple(map(reason, store.hvals(DEAD)))


def reason(letter: str) -> str:
    """Why it is a dead letter, and which task it asks for."""
    about = json.loads(letter.partition("\n")[0])
    return f"{about['reason']} {asked_for(letter) or '?'}"


def asked_for(message: str) -> str | None:
    """The task that a message in a queue or in `unacked` asks for; None for what is no message."""
    line, newline, rest = message.partition("\n")
    try:
        document = json.loads(rest if newline else line)  # ours keep a line about the message before it
    except ValueError:
        return None
    if isinstance(document, list) and document:  # kombu keeps exchange and routing key beside it
        document = document[0]
    return document.get("headers", {}).get("id") if isinstance(document, dict) else None
