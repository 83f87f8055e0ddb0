"""Who asks: services that publish and read at a steady pace, on threads, with our library as it comes.

Celery's results belong to the thread that asked, so each client publishes and then reads on one thread.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from random import Random
from types import TracebackType
from typing import NamedTuple, Self

from faults.history.model_server import prompt
from faults.soak.plan import Plan
from faults.soak.record import Try
from gaelp_tasks import invoke_agent
from gaelp_tasks.errors import StreamRestarted
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.results import InvocationHandle

__all__ = ["GIVE_UP_S", "Clients", "Wrong", "tried", "whole"]

AT_ONCE = 48  #: clients; those that come while Redis stands still wait, and are late
GIVE_UP_S = 120.0
PACE_S = 0.04
TOKENS = (4, 30)  #: of an answer, least and most
RESTARTS = 20  #: more than any fault brings


class Wrong(Exception):
    """An answer that is not what was asked for."""


class Job(NamedTuple):
    """What a client asks."""

    id: str
    tier: Tier
    tokens: int
    streams: bool  #: it reads the stream, too


@contextmanager
def tried(tries: list[Try], kind: str) -> Iterator[None]:
    """Note how the block went; what it raises ends there."""
    began = time.monotonic()
    error = ""
    try:
        yield
    except Exception as raised:  # noqa: BLE001  whatever a client is told, it was not served
        error = f"{type(raised).__name__}: {raised}"[:300]
    tries.append(Try(kind, began, time.monotonic() - began, error))


def whole(text: str, tokens: int) -> str:
    """The text, if it is one run's and whole. Raises Wrong."""
    run, *rest = text.split(" ")
    if len(run) != 32 or rest != ["on"] * (tokens - 1):
        raise Wrong(f"{len(rest) + 1} of {tokens} tokens, or others")
    return text


class Clients:
    """`with Clients(plan) as clients:` asks until told to `rest`; `idle` once all have their answers."""

    def __init__(self, plan: Plan) -> None:
        self.tries: list[Try] = []
        self.acknowledged: dict[str, float] = {}
        self.doubtful: set[str] = set()
        self.asked = 0
        self._rate = plan.rate
        self._rng = Random(plan.seed)
        self._resting = threading.Event()
        self._waiting = 0
        self._lock = threading.Lock()
        # threads of our own: an executor's would keep the program from leaving at once
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(AT_ONCE)]
        self._thread = threading.Thread(target=self._ask, name="clients", daemon=True)

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer."""
        return self._waiting == 0

    def rest(self) -> None:
        """Ask for nothing more."""
        self._resting.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        for thread in (*self._threads, self._thread):
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()
        for _ in self._threads:
            self._jobs.put(None)

    def _ask(self) -> None:
        due = time.monotonic()
        while not self._resting.wait(max(0.0, due - time.monotonic())):
            tier = self._rng.choice(list(Tier))
            tokens = self._rng.randint(*TOKENS)
            due = max(due + 1 / self._rate, time.monotonic() - 1.0)  # no flood after a stop
            self.asked += 1
            with self._lock:
                self._waiting += 1
            self._jobs.put(Job(f"task-{self.asked:06d}", tier, tokens, streams=self.asked % 2 == 0))

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._client(*job)

    def _client(self, task_id: str, tier: Tier, tokens: int, streams: bool) -> None:
        try:
            asked = prompt(task_id, tokens, PACE_S)
            self.doubtful.add(task_id)  # until it is acknowledged: it may run before we hear of it
            sent: list[InvocationHandle] = []
            with tried(self.tries, "submit"):
                sent.append(invoke_agent.apply_async([asked], {"tier": tier.value}, task_id=task_id))
            if not sent:
                return
            self.acknowledged[task_id] = time.monotonic()
            self.doubtful.discard(task_id)
            if streams:
                with tried(self.tries, "stream"):
                    whole(read(sent[0]), tokens)
            with tried(self.tries, "get"):
                whole(sent[0].get(timeout=GIVE_UP_S)["text"], tokens)
        finally:
            with self._lock:
                self._waiting -= 1


def read(handle: InvocationHandle) -> str:
    """The text of a stream, begun again as often as its run is."""
    for _ in range(RESTARTS):
        try:
            return "".join(handle.stream(timeout=GIVE_UP_S))
        except StreamRestarted:
            continue
    raise Wrong(f"begun again more than {RESTARTS} times")
