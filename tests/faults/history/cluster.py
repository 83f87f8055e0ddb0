"""The workers of one subject on one Redis, and what was done to them."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from faults.history.journal import Reader
from faults.history.record import Outage, Start, Stop
from faults.history.subjects import Subject
from gaelp_tasks.demo.parts import Child
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
    ready: bool = False
    busy: bool = False  #: it has started a task

    def signal(self, number: signal.Signals) -> None:
        """To it and its children."""
        os.killpg(self.child.pid, number)

    def terminate(self) -> None:
        """SIGTERM to it alone: it tells its children itself."""
        os.kill(self.child.pid, signal.SIGTERM)


class Cluster:
    """Keeps a number of workers alive; faults go through it, so that it knows what they did."""

    def __init__(self, subject: Subject, server: RedisServer, folder: Path, *, workers: int) -> None:
        self.subject, self.server, self.folder = subject, server, folder
        self.workers: list[Worker] = []
        self.starts: list[Start] = []
        self.outages: list[Outage] = []
        self.stops: list[Stop] = []
        self.quit: list[str] = []
        self._wanted = workers
        self._born = 0
        self._journal = journal_in(folder)
        self._reader = Reader(self._journal)

    def look(self) -> None:
        """See what has started; put new workers in the places of those that ended."""
        news = self._reader.news()
        self.starts += news
        active = {start.worker for start in news}
        for worker in tuple(self.workers):
            worker.ready = worker.ready or " ready." in worker.child.output()
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

    def pause(self, seconds: float) -> None:
        """Let them work."""
        self.until(lambda: False, within_s=seconds)

    def bury(self, worker: Worker) -> None:
        """It has ended, and its end is accounted for: reap it and what it left behind."""
        self.workers = [other for other in self.workers if other is not worker]
        worker.child.stop()

    def close(self) -> None:
        """End them all at once."""
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
            worker.child.stop()
        self._reader.close()

    def _start(self) -> Worker:
        name = f"worker-{self._born}"
        self._born += 1
        part = self.subject.worker(name, self.folder, url=self.server.url, journal=self._journal)
        return Worker(name, Child(part))
