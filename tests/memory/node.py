"""One simulated node: a model server and its memory on a virtual clock. Nothing is stepped; events are.

Between two events all memory moves evenly, so what lies below the reserve and the moment of a kill are exact.
"""

from bisect import bisect_right, insort
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Protocol

from gaelp_workers.eviction import RANKS, Run
from memory.judge import Tally
from memory.traces import RESERVE_BYTES, UNLOAD_BYTES_S, Job, Model, Trace

GROWTHS = 10  #: of one loaded model at most
LATE_S = 0.03  #: a busy worker looks up to so much later than it wanted to


class Manager(Protocol):
    """Who decides what runs."""

    def look(self, node: "Node") -> tuple[float, bool]:
        """Act on the node; when to look again at the latest, and whether nothing moves on its own account."""


class Served:
    """A model on the server, from the request to load it until its memory is back."""

    def __init__(self, model: Model, now: float, points: list[tuple[float, int]]) -> None:
        self.model = model
        self.since = now
        self.points = points  #: its memory, linear between these moments
        self.ready = False
        self.gone = False  #: asked to unload
        self.grown = 0
        self.starts: list[tuple[float, str]] = []  #: of runs on it: when, and which

    def bytes(self, now: float) -> float:
        """Held now."""
        points = self.points
        if now >= points[-1][0]:
            return points[-1][1]
        at = bisect_right(points, (now, 1 << 62))
        if at == 0:
            return points[0][1]
        (begins, before), (ends, after) = points[at - 1], points[at]
        return before + (after - before) * (now - begins) / (ends - begins)


class Node:
    """Run it once."""

    def __init__(self, trace: Trace, tell: Callable[[float, str], None] | None = None) -> None:
        self.trace = trace
        self.rng = Random(trace.seed)
        self.now = 0.0
        self.tally = Tally(RESERVE_BYTES)
        self.served: dict[str, Served] = {}
        self.dying: list[Served] = []  #: unloaded, their memory is not all back
        self.waiting: dict[str, list[Run]] = {name: [] for name in trace.models}
        self.running: dict[str, list[Run]] = {name: [] for name in trace.models}
        self.failed: set[str] = set()  #: loads that ended without a model; the manager empties it
        self._jobs = {job.id: job for job in trace.jobs}
        self.turns: list[Served] = []  #: every load of ours, in order
        self.ends: dict[str, float] = {}  #: of runs that have ended
        self._events: list[tuple[float, int, Callable[[], None] | None]] = []
        self._count = 0
        self._tell = tell
        self._others_at = 0
        self._wanted = True  #: something happened that the manager is told of

    # what the server does

    def tell(self, text: str) -> None:
        """A line of the timeline."""
        if self._tell:
            self._tell(self.now, f"{self.free() / 1e9:6.2f} GB free  {text}")

    def free(self) -> float:
        """Free memory now."""
        held = sum(one.bytes(self.now) for one in self.served.values())
        held += sum(one.bytes(self.now) for one in self.dying)
        return self.trace.total_bytes - held - self._others()

    def load(self, name: str) -> None:
        """Ask the server for a model."""
        model = self.trace.models[name]
        if name in self.served:
            self.tally.broken.append(f"{name} is loaded twice")
            return
        now, weights_at = self.now, self.now + model.load_s
        ready_at = weights_at + model.kv_s
        points = [(now, 0), (weights_at, model.weights_bytes), (ready_at, model.true_bytes)]
        self.served[name] = one = Served(model, now, points)
        self.turns.append(one)
        self.tally.loads += 1
        self._at(weights_at, None)
        self._at(ready_at, partial(self._ready, one))

    def unload(self, name: str) -> list[Run]:
        """Stop what runs on a model and unload it; the runs that were cut wait again."""
        one = self.served.get(name)
        if one is None or name not in self.trace.models:
            self.tally.broken.append(f"{name} is unloaded, but it is not ours")
            return []
        cut = self._stop(name)
        held, begins = int(one.bytes(self.now)), self.now + one.model.unload_s
        ends = begins + max(0.01, held / UNLOAD_BYTES_S)
        # a load that is stopped goes no further
        one.points = [(self.now, held), (begins, held), (ends, 0)]
        one.gone = True
        self.tally.wasted += not one.starts
        del self.served[name]
        self.dying.append(one)
        self._at(begins, None)
        self._at(ends, partial(self._gone, one))
        return cut

    def start(self, run: Run, name: str) -> None:
        """Begin a run that waited."""
        one = self.served.get(name)
        if one is None or not one.ready:
            self.tally.broken.append(f"{run.id} starts on {name}, which is not loaded")
            return
        if len(self.running[name]) >= one.model.footprint.num_parallel:
            self.tally.broken.append(f"{run.id} starts on {name}, which has no free slot")
            return
        self.waiting[name].remove(run)
        begun = run._replace(since_s=self.now)
        self.running[name].append(begun)
        one.starts.append((self.now, run.id))
        self._at(self.now + self._jobs[run.id].lasts_s, partial(self._end, begun, name))

    # the clock

    def run(self, manager: Manager) -> Tally:
        """The whole trace."""
        self._begin()
        looks_at, free, length_s = 0.0, self.free(), self.trace.length_s
        while self.now < length_s and not self._is_done():
            at = min(self._events[0][0] if self._events else length_s, looks_at, length_s)
            if at > self.now:
                self._pass(at, free)
            while self._events and self._events[0][0] <= self.now:
                happens = heappop(self._events)[2]
                if happens is not None:
                    happens()
            if self._wanted or self.now >= looks_at:
                self._wanted = False
                looks_at = self._look(manager)
            free = self.free()
        return self.tally

    def _is_done(self) -> bool:
        return self.trace.ends_when_done and self.tally.done == len(self._jobs)

    def _begin(self) -> None:
        for job in self.trace.jobs:
            self._at(job.at_s, partial(self._arrive, job))
        for at, held in self.trace.others:
            self._at(at, partial(self.tell, f"others hold {held / 1e9:.1f} GB"))
        if self.trace.theirs is not None:
            model = self.trace.theirs
            one = Served(model, 0.0, [(0.0, model.true_bytes)])
            one.ready = True
            self.served[model.name] = one

    def _look(self, manager: Manager) -> float:
        """Let the manager act; when it looks again."""
        again, calm = manager.look(self)
        if calm and self._events and self._still():
            # nothing moves until something happens; it is seen at a moment as chance has it
            again = max(again, self._events[0][0] + self.rng.uniform(0.0, again - self.now))
        return again + self.rng.uniform(0.0, LATE_S)

    def _at(self, when: float, happens: Callable[[], None] | None) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, happens))

    def _pass(self, at: float, before: float) -> None:
        """Time goes on to the next event, or to a kill on the way."""
        begins, self.now = self.now, at
        after = self.free()
        if after <= 0.0:
            self.now = begins + (at - begins) * max(0.0, before) / (before - after) if before > after else at
            self.tally.span(begins, before, self.now, 0.0)
            self._kill()
        else:
            self.tally.span(begins, before, at, after)

    def _others(self) -> float:
        points, at = self.trace.others, self._others_at
        while at + 1 < len(points) and points[at + 1][0] <= self.now:
            at += 1
        self._others_at = at
        begins, before = points[at]
        if at + 1 == len(points):
            return before
        ends, after = points[at + 1]
        if self.now < begins:
            return before
        return before + (after - before) * (self.now - begins) / (ends - begins)

    def _still(self) -> bool:
        """Whether no memory moves between here and the next event."""
        if self.dying or not all(one.ready for one in self.served.values()):
            return False
        points, at = self.trace.others, self._others_at
        return at + 1 == len(points) or points[at][1] == points[at + 1][1]

    # what happens

    def _arrive(self, job: Job) -> None:
        self._queue(Run(job.id, job.tier, self.now), job.model)
        self._wanted = True

    def _queue(self, run: Run, name: str) -> None:
        insort(self.waiting[name], run, key=lambda one: (RANKS[one.tier], one.since_s))

    def _ready(self, one: Served) -> None:
        if self.served.get(one.model.name) is one and not one.gone:
            one.ready = self._wanted = True
            self.tell(f"{one.model.name} is loaded: {one.model.true_bytes / 1e9:.1f} GB")

    def _gone(self, one: Served) -> None:
        self.dying.remove(one)
        self._wanted = True

    def _end(self, run: Run, name: str) -> None:
        if run not in self.running[name]:
            return
        self.running[name].remove(run)
        self.tally.done += 1
        self.ends[run.id] = self.now
        self.tally.work_s += self._jobs[run.id].lasts_s
        one = self.served[name]
        if one.grown < GROWTHS:
            one.grown += 1
            one.points = [(self.now, one.points[-1][1] + one.model.growth_bytes)]
        self._wanted = True

    def _stop(self, name: str) -> list[Run]:
        cut, self.running[name] = self.running[name], []
        self.tally.cut += len(cut)
        for run in cut:
            self._queue(run._replace(since_s=self._jobs[run.id].at_s), name)
        return cut

    def _kill(self) -> None:
        """The kernel takes the biggest; its memory is free at once, which is kind to who let it happen."""
        self.tally.kills += 1
        everything = [*self.served.values(), *self.dying]
        if not everything:
            self.tally.broken.append("memory ran out with nothing loaded: the trace asks too much")
            self.now = self.trace.length_s
            return
        biggest = max(everything, key=lambda one: one.bytes(self.now))
        name = biggest.model.name
        self.tell(f"KILLED {name}")
        if biggest in self.dying:
            biggest.points = [(self.now, 0)]
            return
        del self.served[name]
        if name in self.trace.models:
            self._stop(name)
            if not biggest.ready:
                self.failed.add(name)
        biggest.gone = True
        self._wanted = True
