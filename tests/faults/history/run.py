"""One run: publish, strike, drain, write down what happened."""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from faults.history.cluster import Cluster, Worker
from faults.history.faults import Fault
from faults.history.observer import Observer
from faults.history.record import Acceptance, History
from faults.history.subjects import Subject
from support.redis_server import RedisServer

SETTLED_S = 3.0  #: of silence with no message queued or held: longer than a task takes, a zombie's too
#: hashes of messages that workers hold, plain Celery's and ours, and of those that wait for their time
HELD = ("unacked", "gaelp:unacked", "gaelp:parked:messages")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do; the seed decides the faults, their order, victims and moments."""

    faults: Sequence[Fault]
    strikes: int
    tasks: int  #: published in equal parts before each strike
    seed: int
    workers: int = 2
    spread_s: float = 0.2  #: a strike comes at any moment within this after its victim was seen at work
    quiet_s: float = 30.0  #: a drain in which nothing was started or answered for this long is over


def run(subject: Subject, plan: Plan, server: RedisServer, folder: Path) -> History:
    """Do it on an empty Redis; the logs of the workers are left in `folder`."""
    began = time.monotonic()
    cluster = Cluster(subject, server, folder, workers=plan.workers)
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

    def history(self, began: float) -> History:
        cluster, plan = self.cluster, self.plan
        assert cluster.until(lambda: all(worker.ready for worker in cluster.workers)), "workers do not start"
        for number in range(plan.strikes):
            self.publish(plan.tasks * (number + 1) // plan.strikes)
            self.strike(self.rng.choice(plan.faults))
        found = self.drain()
        return History(
            acknowledged=self.acknowledged,
            doubtful=frozenset(self.doubtful),
            starts=tuple(cluster.starts),
            acceptances=(*self.observer.heard, *found),
            outages=tuple(cluster.outages),
            stops=tuple(cluster.stops),
            left=frozenset(self.left()),
            quit=tuple(cluster.quit),
            strikes=self.strikes,
            idle=self.idle,
            took_s=time.monotonic() - began,
        )

    def publish(self, up_to: int) -> None:
        """Ask for work until so many were asked for; nothing is ever asked for twice."""
        while self.asked < up_to:
            task_id = f"task-{self.asked:06d}"
            self.asked += 1
            try:
                ids = self.subject.publish(task_id)
            except Exception:  # noqa: BLE001  whatever the publisher sees, it was not told yes
                self.doubtful.add(task_id)
            else:
                self.acknowledged.update(dict.fromkeys(ids, time.monotonic()))

    def strike(self, fault: Fault) -> None:
        victim = self.victim()
        self.cluster.pause(self.rng.uniform(0.0, self.plan.spread_s))
        if fault.needs_victim and not self.waiting():
            self.idle += 1
        self.strikes[fault.name] = self.strikes.get(fault.name, 0) + 1
        fault.strike(self.cluster, victim, self.rng)

    def victim(self) -> Worker:
        """A worker that has been seen at work."""
        able = self.cluster.until(lambda: [worker for worker in self.cluster.workers if worker.busy])
        assert able, "no worker does anything"
        return self.rng.choice(able)

    def drain(self) -> list[Acceptance]:
        """Wait until nothing is held and nothing moves, within bounds; returns what clients can read."""
        missing, moved_at, seen = set(self.acknowledged), time.monotonic(), (0, 0, 0)
        while True:
            self.cluster.pause(0.2)
            heard = tuple(self.observer.heard)
            missing -= {told.id for told in heard}
            with closing(self.cluster.server.client()) as store:
                missing -= {told.id for told in self.subject.answers(store, missing)}
            moves = (len(self.cluster.starts), len(heard), len(missing))
            if moves != seen:
                seen, moved_at = moves, time.monotonic()
            quiet_s = time.monotonic() - moved_at
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
            lists = [store.lrange(key, 0, -1) for key in store.scan_iter(_type="list", count=1000)]
            held = [store.hvals(key) for key in HELD]
        return {task_id for texts in (*lists, *held) for text in texts if (task_id := asked_for(text))}


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
