"""No-op tasks of our app beside plain Celery's: how fast a full queue drains, how long an idle one takes."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import noop
import plain
import redis
from celery import Celery
from celery.result import AsyncResult
from figures import Figure, percentile
from parts import cpu_s, start_deaf, start_ours, start_plain

from gaelp_tasks.demo.parts import Child
from gaelp_tasks.demo.stack import Stack

__all__ = ["FULL", "QUICK", "Plan", "measure_tasks"]

SLOTS = 8
LOOK_S = 0.005  #: between two looks at the queue
GIVE_UP_S = 120.0
IDLE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    tasks: int  #: per drain
    trips: int  #: idle round trips per round


FULL = Plan(rounds=5, tasks=600, trips=60)
QUICK = Plan(rounds=2, tasks=200, trips=30)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared."""

    task: Any
    queue: str
    held: str  #: the hash of what is not acknowledged
    worker: Child
    store: redis.Redis

    @contextmanager
    def halted(self) -> Iterator[None]:
        """The worker's process stands still: it takes nothing, and takes no CPU from the other."""
        os.kill(self.worker.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.worker.pid, signal.SIGCONT)

    def left(self) -> int:
        """Tasks queued or not acknowledged."""
        with self.store.pipeline(transaction=False) as pipe:
            pipe.llen(self.queue)
            pipe.hlen(self.held)
            return sum(pipe.execute())

    def stored(self, sent: list[AsyncResult]) -> int:
        """How many of the tasks have a result."""
        return self.store.exists(*(f"celery-task-meta-{result.id}" for result in sent))

    def drain(self, tasks: int) -> float:
        """Tasks per second, from a queue filled while the worker stood still to the last acknowledgement."""
        with self.halted():
            sent = [self.task.delay() for _ in range(tasks)]
        started = time.perf_counter()
        # a task that is just being fetched is neither queued nor unacknowledged, and has no result yet
        while self.left() or self.stored(sent) < tasks:
            time.sleep(LOOK_S)
            if time.perf_counter() - started > GIVE_UP_S:
                raise TimeoutError(f"{self.left()} of {tasks} tasks are left; see {self.worker.part.log}.")
        return tasks / (time.perf_counter() - started)

    def trip_ms(self) -> float:
        """From `delay` to the result in hand."""
        started = time.perf_counter()
        self.task.delay().get(timeout=GIVE_UP_S)
        return (time.perf_counter() - started) * 1000


def measure_tasks(folder: Path, plan: Plan) -> list[Figure]:
    """Both workers run all the time; while one is drained the other stands still."""
    with Stack() as stack:
        ours = Side(
            task=noop.noop,
            queue="interactive",
            held="gaelp:unacked",
            worker=start_ours(stack, folder, slots=SLOTS),
            store=redis.Redis.from_url(os.environ["GAELP_BROKER_URL"]),
        )
        theirs = Side(
            task=plain.noop,
            queue="celery",
            held="unacked",
            worker=start_plain(stack, folder, slots=SLOTS),
            store=redis.Redis.from_url(os.environ[plain.URL_VARIABLE]),
        )
        for side in (ours, theirs):  # threads, connections, caches
            side.drain(SLOTS)
            side.trip_ms()
        # first the trips: what a drain leaves to be read would count as theirs
        return [
            _idle(ours, plan),
            *_trips(ours, theirs, plan),
            _unrung(ours, plan, stack, folder),
            *_drains(ours, theirs, plan),
        ]


def _idle(ours: Side, plan: Plan) -> Figure:
    """CPU of a worker that has nothing to do."""
    rounds = []
    for _ in range(plan.rounds):
        before = cpu_s(ours.worker.pid)
        time.sleep(IDLE_S)
        rounds.append((cpu_s(ours.worker.pid) - before) / IDLE_S * 100)
    return Figure(name="idle CPU, ours", unit="% of a core", rounds=tuple(rounds), at_most=2.0)


def _unrung(ours: Side, plan: Plan, stack: Stack, folder: Path) -> Figure:
    """Trips of a service that knows nothing of ours, to a worker that Redis does not tell of them."""
    url = os.environ["GAELP_BROKER_URL"]
    rounds = []
    with ours.halted(), Celery("service", broker=url, backend=url) as service:
        deaf = start_deaf(stack, folder, slots=SLOTS)
        for _ in range(plan.rounds):
            trips = []
            for _ in range(plan.trips):
                started = time.perf_counter()
                service.send_task(noop.noop.name, queue=ours.queue).get(timeout=GIVE_UP_S)
                trips.append((time.perf_counter() - started) * 1000)
            rounds.append(percentile(trips, 99))
        deaf.stop()
    return Figure(name="idle round trip p99, no bell", unit="ms", rounds=tuple(rounds), at_most=30.0)


def _drains(ours: Side, theirs: Side, plan: Plan) -> list[Figure]:
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(plan.rounds):
        pairs = [("ours", ours, theirs), ("theirs", theirs, ours)]
        for name, side, other in pairs if number % 2 else reversed(pairs):
            with other.halted():
                rates[name].append(side.drain(plan.tasks))
    ratios = tuple(a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True))
    return [
        Figure(name="no-op drain, plain Celery", unit="tasks/s", rounds=tuple(rates["theirs"])),
        Figure(name="no-op drain, ours", unit="tasks/s", rounds=tuple(rates["ours"])),
        Figure(name="no-op drain, ours / plain", unit="", rounds=ratios, at_least=1.2),
    ]


def _trips(ours: Side, theirs: Side, plan: Plan) -> list[Figure]:
    rounds = []
    for _ in range(plan.rounds):
        pairs = [(ours.trip_ms(), theirs.trip_ms()) for _ in range(plan.trips)]
        rounds.append([[percentile(side, at) for at in (50, 99)] for side in zip(*pairs, strict=True)])
    return [
        Figure(name="idle round trip p50, plain Celery", unit="ms", rounds=tuple(b[0] for _, b in rounds)),
        Figure(name="idle round trip p99, plain Celery", unit="ms", rounds=tuple(b[1] for _, b in rounds)),
        Figure(name="idle round trip p50, ours", unit="ms", rounds=tuple(a[0] for a, _ in rounds)),
        Figure(name="idle round trip p99, ours", unit="ms", rounds=tuple(a[1] for a, _ in rounds)),
        Figure(
            name="idle round trip p50, ours - plain",
            unit="ms",
            rounds=tuple(a[0] - b[0] for a, b in rounds),
            at_most=0.5,
        ),
    ]
