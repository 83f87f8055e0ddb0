"""One simulation: producers, workers, an operator, and an adversary, all decided by a seed."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple

from gaelp_tasks import dead_letters
from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.connections import Refused, lost
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.lifecycle import Invariant
from simulation import ours
from simulation.judge import Broken, Judge
from simulation.server import Clock, Fate, Loop, ProcessDied, Server
from simulation.worker import Worker

WORKERS = 3
SETTLE_S = 120.0  #: after the last thing that is due, once nothing fails any more
SLICE_S = 0.1

#: what a step may be, and how often
KINDS = {
    "turn": 100,
    "time": 16,
    "publish": 9,
    "publish again": 3,
    "cancel": 3,
    "kill": 2,
    "freeze": 2,
    "clock": 2,
    "stop": 2,
    "weather": 4,
    "restart": 1,
    "full": 1,
    "replay": 2,
}


class Step(NamedTuple):
    """One decision; it means the same whatever steps are left out before it."""

    number: int
    kind: str
    worker: int
    seed: str


def plan(seed: int, steps: int) -> list[Step]:
    """The steps of a seed."""
    rng = Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    return [
        Step(number, rng.choices(kinds, weights)[0], rng.randrange(WORKERS), f"{seed}|{number}")
        for number in range(steps)
    ]


class Verdict(NamedTuple):
    """How a simulation ended."""

    broken: Broken | None
    steps: int  #: taken before that
    history: list[str]
    counts: Counter[str]  #: what happened, to see that a simulation is no idle one


class Simulation:
    """One world; `run` once."""

    def __init__(self, seed: int) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)
        self.loop = Loop(self.clock)
        self.judge = Judge(self.server, self._alive)
        self.calm = False
        self.history: list[str] = []
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._rng = Random(seed)
        self._said: Counter[int] = Counter()  # how often a command was sent in this step
        self._trouble = 0.03
        self._depth = 0
        self._born = 0
        self._ids: list[str] = []
        self._copies: Counter[str] = Counter()
        self._producer = self.server.client("producer")
        self._operator = self.server.client("operator", text=False)
        self._workers = [self._new() for _ in range(WORKERS)]
        self.server.fate = self._fate
        self.server.before = self._interleave
        self.server.after = self.judge.after
        self.server.caller_s = self._wall_of

    # -- what processes see of it

    def note(self, what: str) -> None:
        self.history.append(f"{self.clock() % 100_000:9.3f}  {'  ' * self._depth}{what}")

    def copy(self, task_id: str) -> str:
        self._copies[task_id] += 1
        return f"{task_id}/{self._copies[task_id]}"

    def told(self, task_id: str) -> None:
        self.judge.accepted.add(task_id)

    def _alive(self, holder: str) -> bool:
        return any(worker.name == holder for worker in self._workers)

    def _wall_of(self, who: str) -> float:
        walls = {worker.name: worker.clock.wall for worker in self._workers}
        return walls.get(who, self.clock)()

    # -- the adversary

    def _fate(self, who: str, what: int) -> Fate:
        """By what is said, not by when: the order of a set must not matter."""
        if self.calm:
            return Fate.FINE
        self._said[what] += 1
        rng = Random(f"{self._step.seed}|{who}|{what}|{self._said[what]}")
        if rng.random() >= self._trouble:
            return Fate.FINE
        fate = rng.choice([Fate.DROPPED, Fate.UNANSWERED])
        if who not in {"producer", "operator"} and rng.random() < 0.1:
            fate = rng.choice([Fate.DIES_BEFORE, Fate.DIES_AFTER])
        self.note(f"{who}: {fate.name.lower()}")
        self.counts[fate.name] += 1
        return fate

    def _interleave(self, who: str) -> None:
        """Before a command of a process that is in the middle of several, others may go on."""
        if self.calm or self._depth or self._rng.random() >= 0.1:
            return
        self._depth = 1
        try:
            worker = self._workers[self._rng.randrange(WORKERS)]
            self.counts["interleaved"] += 1
            self._with(worker, lambda: worker.turn(self._rng))
        finally:
            self._depth = 0

    def _with(self, worker: Worker, act: Callable[[], None]) -> None:
        """Let a process act; where it dies, another takes its place."""
        if worker not in self._workers or worker.frozen_until > self.clock():
            return
        try:
            act()
        except ProcessDied:
            if worker in self._workers:  # else it has died of another command in the middle of this one
                self._replace(worker)
        if worker.stopping and worker.idle and worker in self._workers:
            self._replace(worker)

    def _new(self) -> Worker:
        self._born += 1
        worker = Worker(self, f"w{self._born}", Random(f"{self._seed}|w{self._born}"))
        worker.next_beat = self.clock()
        return worker

    def _replace(self, worker: Worker) -> None:
        self.note(f"{worker.name} is gone")
        self.counts["gone"] += 1
        worker.close()
        self._workers[self._workers.index(worker)] = self._new()

    # -- steps

    def take(self, step: Step) -> None:
        """One step. Raises Broken."""
        self._step = step
        self._rng = Random(step.seed)
        self._said.clear()
        self.counts[step.kind] += 1
        getattr(self, f"_{step.kind.replace(' ', '_')}")(self._workers[step.worker])
        self._pass(self._rng.uniform(0.001, 0.02))
        self._look()

    def _turn(self, worker: Worker) -> None:
        self._with(worker, lambda: worker.turn(self._rng))

    def _time(self, _: Worker) -> None:
        self._pass(self._rng.choice([0.05, 0.2, 0.5, 1.0, 2.0]))

    def _kill(self, worker: Worker) -> None:
        self._replace(worker)

    def _freeze(self, worker: Worker) -> None:
        worker.frozen_until = self.clock() + self._rng.uniform(0.5, 12.0)
        self.note(f"{worker.name} is frozen until {worker.frozen_until % 100_000:.3f}")

    def _clock(self, worker: Worker) -> None:
        worker.clock.ahead_s = self._rng.uniform(-3.0, 3.0) * 3600
        self.note(f"{worker.name}'s clock is {worker.clock.ahead_s:.0f} s ahead")

    def _stop(self, worker: Worker) -> None:
        self.note(f"{worker.name} is asked to stop")
        self._with(worker, worker.stop)

    def _weather(self, _: Worker) -> None:
        self._trouble = self._rng.choice([0.0, 0.02, 0.05, 0.3])

    def _restart(self, _: Worker) -> None:
        self.note("Redis is restarted")
        self.server.restart()

    def _full(self, _: Worker) -> None:
        self.server.full = not self.server.full
        self.note(f"Redis is {'full' if self.server.full else 'not full any more'}")

    def _look(self) -> None:
        if self.judge.broken is not None:
            raise self.judge.broken

    def _pass(self, seconds: float) -> None:
        """Let time pass; keepers beat when it is time."""
        until = self.clock() + seconds
        while self.clock() < until:
            self.clock.at_s = min(until, self.clock() + SLICE_S)
            for worker in tuple(self._workers):
                if worker.next_beat <= self.clock() and worker.frozen_until <= self.clock():
                    worker.next_beat = self.clock() + ours.BEAT_S
                    self._with(worker, worker.beat)
            self.loop.settle()

    def _publish(self, _: Worker) -> None:
        task_id = f"t{len(self._ids) + 1}"
        self._ids.append(task_id)
        rng = self._rng
        self._send(
            task_id,
            due=self.clock() + rng.uniform(0.5, 8.0) if rng.random() < 0.25 else None,
            follows=f"{task_id}-next" if rng.random() < 0.2 else None,
            junk=rng.random() < 0.08,
        )

    def _send(self, task_id: str, **how: Any) -> None:
        copy = self.copy(task_id)
        text = ours.message(task_id, copy, to=self._rng.choice(ours.LISTS), **how)
        due = f", due {how['due'] % 100_000:.3f}" if how.get("due") else ""
        self.note(f"publishes {copy}{due}{', junk' if how.get('junk') else ''}")
        try:
            ours.publish(self._producer, text)
        except (*lost, Refused):
            self.note("  in doubt")
        else:
            if not how.get("junk"):
                self.told(task_id)

    def _publish_again(self, _: Worker) -> None:
        if self._ids:
            self._send(self._rng.choice(self._ids))

    def _cancel(self, _: Worker) -> None:
        if not self._ids:
            return
        task_id = self._rng.choice(self._ids)
        self.note(f"cancels {task_id}")
        try:
            request_cancel(self._producer, ours.KEYS, task_id, ttl_s=86_400.0)
        except (*lost, Refused):
            self.note("  in doubt")

    def _replay(self, _: Worker) -> None:
        with ours.operator(self._operator) as app:
            for letter in tuple(self.server.hash(ours.KEYS.dead_messages)):
                self.note(f"replays {letter.decode()}")
                try:
                    dead_letters.replay(app, [letter.decode()])
                except BrokerUnavailable:
                    self.note("  in doubt")

    # -- the end

    def settle(self) -> None:
        """Nothing fails any more: everything must end, soon after what is due. Raises Broken."""
        self.calm = True
        self.server.full = False
        self.note("nothing fails any more")
        for worker in self._workers:
            worker.frozen_until = 0.0
            worker.clock.ahead_s = 0.0
        until = self.clock() + SETTLE_S
        while self.judge.open:
            if self.clock() > until:
                raise Broken(Invariant.SETTLES, f"{', '.join(sorted(self.judge.open))} did not settle")
            seen = self.judge.seen
            if seen.parked and not (seen.queued or seen.held or seen.suspects):
                first = min(due for _, due in seen.parked if due is not None)
                self.clock.at_s = max(self.clock(), first)
                until = max(until, self.clock() + SETTLE_S)
            for worker in tuple(self._workers):
                for _ in range(12):
                    self._with(worker, lambda worker=worker: worker.turn(self._rng))
            self._pass(SLICE_S)
            self._look()

    def close(self) -> None:
        """End what still waits; nothing of it reaches the server."""
        for worker in self._workers:
            worker.close()
        self.server.fate = lambda who, what: Fate.FINE
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        for _ in range(5):
            self.loop.settle()
            self.clock.at_s += 10.0
        self.loop.close()


@contextmanager
def quiet() -> Any:
    """Without the log lines of the workers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def simulate(seed: int, steps: int, *, keep: Collection[int] | None = None) -> Verdict:
    """Run the steps of a seed, or those of them that are named, and then let everything settle."""
    with quiet():
        world = Simulation(seed)
        taken = 0
        with world.server.timed():
            try:
                for step in plan(seed, steps):
                    if keep is None or step.number in keep:
                        taken = step.number + 1
                        world.take(step)
                world.settle()
            except Broken as broken:
                return Verdict(broken, taken, world.history, world.counts)
            finally:
                world.close()
        world.counts["answers"] = len(world.judge.answers)
        return Verdict(None, taken, world.history, world.counts)
