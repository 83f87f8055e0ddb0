"""How much memory a node has: the smallest of what its probes say, among those that tell of the right pool.

Host RAM and the memory of GPUs are two pools. Which of them bounds a node (`probes_for` is all of the rule):

- a node elsewhere: only the declared budget, for nothing here tells of that machine;
- a node here with GPUs that NVML sees: VRAM (and the budget), unless all that /api/ps lists is on the CPU.
  While nothing is loaded what was last seen stands: figures must not jump between pools with each unloading;
- models on a GPU that NVML does not see (AMD): the budget, if one is declared. On Apple's machines GPU and
  CPU share one memory, so there RAM counts beside it;
- else RAM: host, cgroups and budget.

`GAELP_MEMORY_SOURCE` names one probe instead, for setups that this guesses wrong.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple, Protocol

from gaelp_tasks.models.capacity import MemorySnapshot, Resident
from gaelp_tasks.settings import MemorySource, Settings
from gaelp_workers.probes.cgroups import UNLIMITED, V1, V2, Cgroup
from gaelp_workers.probes.gpu import Gpus
from gaelp_workers.probes.host import Server, host_memory, own_names, port_here

__all__ = ["Facts", "NodeMemory", "Probe", "Reading", "budget_left", "memory_of", "probes_for", "smallest"]

logger = logging.getLogger(__name__)

STANDS_S = 10.0  #: what a probe said last counts for so long once it fails: the rest may say far more
ANSWERS_S = 5.0  #: a probe on a thread has so long; after that it counts as failed
LOOK_S = 5.0  #: between two looks at the processes of the model server
SEEK_S = 60.0  #: the same while none is found
FOUND_S = 0.5  #: at most for the look at a server that begins to answer; it takes milliseconds


class Probe(Protocol):
    """Something that knows of memory."""

    def __call__(self) -> MemorySnapshot | None:
        """What it sees now; None where it does not apply. May raise: it is left out then."""


class Facts(NamedTuple):
    """What decides which pool bounds a node."""

    here: bool  #: the node is on this machine
    budget: bool  #: one is declared
    gpus: bool  #: NVML has told of some
    on_gpu: bool | None  #: models were last seen there; None: nothing was loaded yet
    unified: bool  #: GPU and CPU share one memory


class Reading(NamedTuple):
    """A node's memory, and what its model server has of it."""

    memory: MemorySnapshot
    held_bytes: int | None  #: RAM of the server and its runners; None where that cannot be seen


RAM = ("host", V2.name, V1.name)
UNKNOWN = MemorySnapshot(total_bytes=0, free_bytes=0, source="unknown")
NAMED: Mapping[MemorySource, tuple[str, ...]] = {
    "host": ("host",),
    "cgroup": (V2.name, V1.name),
    "gpu": ("gpu",),
    "budget": ("budget",),
}


def probes_for(source: MemorySource, facts: Facts) -> tuple[str, ...]:
    """The probes that tell of the pool that bounds the node; one without a limit to tell is passed over."""
    if source != "auto":
        return NAMED[source]
    if not facts.here:
        return ("budget",) if facts.budget else ("host",)
    if facts.gpus and facts.on_gpu is not False:
        return ("gpu", "budget")
    if facts.on_gpu and facts.budget and not facts.unified:
        return ("budget",)
    return (*RAM, "budget")


def smallest(told: Iterable[MemorySnapshot]) -> MemorySnapshot | None:
    """The one with the least free, the first of equal ones; None of none."""
    return min(told, key=lambda one: one.free_bytes, default=None)


def budget_left(budget_bytes: int, loaded: Sequence[Resident], *, unified: bool) -> MemorySnapshot | None:
    """A declared budget less what is loaded, whoever loaded it; None where none is declared.

    Where models are on GPUs the budget is of VRAM, so the part of them that lies in RAM does not count.
    """
    if not budget_bytes:
        return None
    on_gpu = any(model.vram_bytes for model in loaded) and not unified
    used = sum(model.vram_bytes if on_gpu else model.size_bytes for model in loaded)
    return MemorySnapshot(total_bytes=budget_bytes, free_bytes=max(0, budget_bytes - used), source="budget")


def _no_probe() -> None:
    """Tells nothing."""


class Aside:
    """A probe that may block, asked on a thread of its own: it tells what it has said the last time.

    One that first says None is not asked again.
    """

    def __init__(self, probe: Probe, tick: Callable[[], float] = monotonic) -> None:
        self._probe = probe
        self._tick = tick
        self._thread: threading.Thread | None = None
        self._since = 0.0
        self._applies = True
        self._said: MemorySnapshot | None = None
        self._error: Exception | None = None

    def __call__(self) -> MemorySnapshot | None:
        """Raises what the probe has raised, TimeoutError where it does not answer any more."""
        if not self._applies:
            return None
        if self._thread is not None and self._thread.is_alive():
            if self._tick() - self._since > ANSWERS_S:
                raise TimeoutError("it does not answer")
            return self._said
        error, self._error = self._error, None
        self._since = self._tick()
        self._thread = threading.Thread(target=self._ask, name="gaelp-memory", daemon=True)
        self._thread.start()
        if error is not None:
            raise error
        return self._said

    def _ask(self) -> None:
        try:
            self._said = self._probe()
            self._applies = self._said is not None
        except Exception as error:  # noqa: BLE001  who asks next is told
            self._error = error


@dataclass(slots=True)
class Look:
    """Looks at the processes of a node's server now and then, on a thread: it takes milliseconds."""

    server: Server
    began_at: float | None = None
    thread: threading.Thread | None = None

    def again(self, now: float) -> None:
        """Begin a look, if one is due."""
        rest_s = SEEK_S if self.server.pid is None else LOOK_S
        due = self.began_at is None or now - self.began_at >= rest_s
        if due and (self.thread is None or not self.thread.is_alive()):
            self.began_at = now
            self.thread = threading.Thread(target=self.server.look, name="gaelp-memory", daemon=True)
            with suppress(RuntimeError):  # no more threads; later, perhaps
                self.thread.start()

    def now(self, now: float) -> None:
        """Look, and wait for it a moment: a server that has begun to answer may have a cgroup of its own."""
        self.began_at = None
        self.again(now)
        if self.thread is not None and self.thread.ident is not None:
            self.thread.join(FOUND_S)


class NodeMemory:
    """Memory of one node. Its probes are by name; `here` is false for a node on another machine."""

    def __init__(
        self,
        probes: Mapping[str, Probe],
        *,
        source: MemorySource = "auto",
        budget_bytes: int = 0,
        here: bool = True,
        look: Look | None = None,
        unified: bool = sys.platform == "darwin",
        tick: Callable[[], float] = monotonic,
    ) -> None:
        self._probes = {**probes, "budget": self._budget}
        self._source = source
        self._budget_bytes = budget_bytes
        self.here = here  #: on this machine
        self.tells = here or budget_bytes > 0  #: of the node itself, not only of this machine
        self._look = look
        self._unified = unified
        self._tick = tick
        self._loaded: Sequence[Resident] = ()
        self._on_gpu: bool | None = None
        self._gpus = False
        self._said: dict[str, tuple[float, MemorySnapshot | None]] = {}  # probe -> when and what it said last
        self._answered = False  # the server, when it was last asked
        self._told: set[str] = set()  # what the log has been told of
        self._last: MemorySnapshot | None = None

    def __call__(self, loaded: Sequence[Resident] | None) -> Reading:
        """The memory now; `loaded` is what /api/ps lists, None while the server does not answer."""
        if loaded is not None:
            self._loaded = loaded
            if any(model.size_bytes for model in loaded):
                self._on_gpu = any(model.vram_bytes for model in loaded)
        held = None
        if self._look is not None:
            answers = loaded is not None
            if answers and not self._answered:
                self._look.now(self._tick())
            else:
                self._look.again(self._tick())
            self._answered = answers
            held = self._look.server.held_bytes
        self._last = self._measure()
        return Reading(self._last, held)

    def _measure(self) -> MemorySnapshot:
        said: dict[str, MemorySnapshot | None] = {}
        if self.here and self._source == "auto":
            said["gpu"] = self._ask("gpu")
            self._gpus = self._gpus or said["gpu"] is not None
        facts = Facts(self.here, self._budget_bytes > 0, self._gpus, self._on_gpu, self._unified)
        names = probes_for(self._source, facts)
        said |= {name: self._ask(name) for name in names if name not in said}
        if told := smallest(one for name in names if (one := said[name])):
            return told
        if self._last is not None and self._last.source in names:
            return self._last
        self._say_once("pool", "No %s memory is told here; the host's is announced.", " or ".join(names))
        return self._ask("host") or self._last or UNKNOWN

    def _ask(self, name: str) -> MemorySnapshot | None:
        """What a probe says, or said just before it failed."""
        now = self._tick()
        at, last = self._said.get(name, (now, None))
        probe = self._probes.get(name, _no_probe)
        try:
            last, at = probe(), now
        except Exception as error:  # noqa: BLE001  no file of others may end the announcement
            self._say_once(name, "Memory is announced without what %s would tell: %s", name, error)
        self._said[name] = (at, last)
        return last if now - at < STANDS_S else None

    def _say_once(self, topic: str, words: str, *given: object) -> None:
        if topic not in self._told:
            self._told.add(topic)
            logger.warning(words, *given)

    def _budget(self) -> MemorySnapshot | None:
        return budget_left(self._budget_bytes, self._loaded, unified=self._unified)


def memory_of(settings: Settings) -> Callable[[str], NodeMemory]:
    """Makes the NodeMemory of a node by its address; a worker's nodes share what tells of the machine."""
    names, gpus = own_names(), Aside(Gpus())
    try:
        most_bytes = host_memory().total_bytes
    except Exception as error:  # noqa: BLE001  as above; psutil knows many systems
        logger.warning("The host does not tell its memory: %s", error)
        most_bytes = UNLIMITED

    def made(url: str) -> NodeMemory:
        port = port_here(url, names)
        server = None if port is None else Server(port)
        if port is None and not settings.memory_budget:
            logger.warning(
                "%s is not on this machine, and what is announced as its memory is this machine's: declare "
                "GAELP_MEMORY_BUDGET.",
                url,
            )
        # models lie in the memory of the server's cgroup, which need not be the worker's
        pid: Callable[[], int | None] = (lambda: server.pid) if server else (lambda: None)

        def limits(cgroup: Cgroup) -> Probe:
            # the worker's own limit says nothing of a server that it cannot see: what was declared does
            return lambda: None if settings.memory_budget and pid() is None else cgroup()

        return NodeMemory(
            {
                "host": host_memory,
                V2.name: limits(Cgroup(V2, pid=pid, most_bytes=most_bytes)),
                V1.name: limits(Cgroup(V1, pid=pid, most_bytes=most_bytes)),
                "gpu": gpus,
            },
            source=settings.memory_source,
            budget_bytes=int(settings.memory_budget),
            here=port is not None,
            look=Look(server) if server else None,
        )

    return made
