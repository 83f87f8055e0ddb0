"""The workers of one subject on one Redis, and what was done to them."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from faults.history.journal import Reader
from faults.history.record import Outage, Start, Stop
from faults.history.subjects import Subject
from gaelp_tasks.demo.parts import Child
from support.proxy import Proxy
from support.redis_server import RedisServer

READY_S = 60.0  #: for a worker to start on a busy machine

T = TypeVar("T")


def journal_in(folder: Path) -> Path:
    """Where all processes of a run note their starts."""
    return folder / "journal"


@dataclass(eq=False)
class Worker:
    """One process, or group of processes, of the subject."""

    name: str
    child: Child
    proxy: Proxy | None = None  #: between it and Redis
    ready_at: float | None = None  #: None: it has not said so yet
    busy: bool = False  #: it has started a task
    struck: bool = False  #: a strike at it is not over

    def signal(self, number: signal.Signals) -> None:
        """To it and its children."""
        os.killpg(self.child.pid, number)

    def terminate(self) -> None:
        """SIGTERM to it alone: it tells its children itself."""
        os.kill(self.child.pid, signal.SIGTERM)


class Cluster:
    """Keeps a number of workers alive; faults go through it, so that it knows what they did."""

    def __init__(
        self,
        subject: Subject,
        server: RedisServer,
        folder: Path,
        *,
        workers: int,
        proxies: bool = False,
        patience_s: float = 2.5,
    ) -> None:
        self.subject, self.server, self.folder = subject, server, folder
        self.workers: list[Worker] = []
        self.starts: list[Start] = []
        self.outages: list[Outage] = []
        self.stops: list[Stop] = []
        self.quit: list[str] = []
        self._wanted = workers
        self._proxies = ExitStack() if proxies else None
        self._patience_s = patience_s  # a worker without Redis for longer stops its runs, as it should
        self._under_way: list[tuple[Worker, Callable[[], bool]]] = []
        self._born = 0
        self._journal = journal_in(folder)
        self._reader = Reader(self._journal)

    @property
    def under_way(self) -> int:
        """Strikes at workers that are not over."""
        return len(self._under_way)

    @property
    def everybody(self) -> set[Worker]:
        """All whose process may live, those that are being stopped, too."""
        return {*self.workers, *(victim for victim, _ in self._under_way)}

    def look(self) -> None:
        """See what has started; end strikes; put new workers in the places of those that ended."""
        for strike in tuple(self._under_way):
            victim, over = strike
            if over():
                victim.struck = False
                self._under_way.remove(strike)
        news = self._reader.news()
        self.starts += news
        active = {start.worker for start in news}
        for worker in tuple(self.workers):
            if worker.ready_at is None and " ready." in worker.child.output():
                worker.ready_at = time.monotonic()
            worker.busy = worker.busy or worker.name in active
            if not worker.child.alive:
                self.quit.append(str(worker.child.death()))
                self.outages.append(Outage(worker.name, time.monotonic()))
                self.bury(worker)
        while len(self.workers) < self._wanted:
            self.workers.append(self._start())

    def until(self, look: Callable[[], T], *, within_s: float = READY_S) -> T | None:
        """The first true value; None when it took longer."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.look()
            if found := look():
                return found
            time.sleep(0.005)
        return None

    def until_over(self, victim: Worker, over: Callable[[], bool]) -> None:
        """A strike at this worker has begun; `over` is asked at each look, ends it and says so."""
        victim.struck = True
        self._under_way.append((victim, over))

    def without_redis(self, begin: Callable[[], None], end: Callable[[], None], *, for_s: float) -> None:
        """Nobody has Redis for a while; what workers stop themselves meanwhile is excused."""
        names, at = [worker.name for worker in self.workers], time.monotonic()
        begin()
        try:
            self.pause(for_s)
        finally:
            end()
        if for_s > self._patience_s:
            self.outages += [Outage(name, at, time.monotonic()) for name in names]

    def pause(self, seconds: float) -> None:
        """Let them work."""
        self.until(lambda: False, within_s=seconds)

    def bury(self, worker: Worker) -> None:
        """It has ended, and its end is accounted for: reap it and what it left behind."""
        self.workers = [other for other in self.workers if other is not worker]
        worker.child.stop()

    def close(self) -> None:
        """End them all at once."""
        for worker in self.everybody:
            with suppress(ProcessLookupError):
                worker.signal(signal.SIGKILL)
            worker.child.stop()
        self._reader.close()
        if self._proxies is not None:
            self._proxies.close()

    def _start(self) -> Worker:
        name = f"worker-{self._born}"
        self._born += 1
        proxy = self._proxies.enter_context(Proxy(self.server.port)) if self._proxies is not None else None
        url = self.server.url if proxy is None else f"redis://127.0.0.1:{proxy.port}/0"
        part = self.subject.worker(name, self.folder, url=url, journal=self._journal)
        return Worker(name, Child(part), proxy)
