"""The cluster of the soak: history's workers, each on a node of its own, and all the programs beside them."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from faults.history.cluster import Cluster, journal_in
from faults.history.subjects import Ours
from faults.soak.model_server import BUDGET_BYTES
from faults.soak.plan import Plan
from faults.soak.programs import Node, Program, SafeRedis, Sql, beat, metrics, sql, wait_for
from gaelp_tasks.celery_app import app
from gaelp_tasks.db.database import Database
from gaelp_tasks.demo.parts import Part
from gaelp_tasks.settings import Settings

__all__ = ["Place", "Soaked", "soaked"]

READY_S = 60.0
AGAIN_S = 0.5
LEASE_S = 5.0


class Place(NamedTuple):
    """A process to be looked at."""

    name: str
    pid: int


class Workers:
    """History's subject, with a node for each worker."""

    name = "gaelp-tasks, soaked"
    fenced = True

    def __init__(self, slots: int, settings: Mapping[str, str], settle: Callable[[str], Node]) -> None:
        self._slots, self._settings, self._settle = slots, tuple(settings.items()), settle

    def worker(self, name: str, folder: Path, *, url: str, journal: Path) -> Part:
        ours = Ours(node=self._settle(name).url, slots=self._slots, settings=self._settings)
        return ours.worker(name, folder, url=url, journal=journal)


class Soaked(Cluster):
    """All of it; `look` sees to every program."""

    def __init__(self, plan: Plan, server: SafeRedis, database: Sql, folder: Path) -> None:
        settings = {
            "GAELP_DATABASE_URL": database.url,
            "GAELP_MEMORY_SOURCE": "budget",
            "GAELP_MEMORY_BUDGET": str(BUDGET_BYTES),
            "GAELP_OS_RESERVE": "64MiB",
            "GAELP_RESULT_TTL_S": f"{plan.kept_s:g}",
            "GAELP_STREAM_TTL_S": f"{plan.kept_s:g}",
        }
        workers = Workers(plan.slots, settings, self.settle)
        super().__init__(workers, server, folder, workers=plan.workers, patience_s=LEASE_S / 2)
        self.database = database
        self._held: dict[str, Node] = {}  # worker -> its node
        self._later: list[tuple[float, Callable[[], None]]] = []  # when a strike ends, and how
        env = settings | {"GAELP_BROKER_URL": server.url}
        journal = journal_in(folder)
        # one more than workers: who is being stopped keeps its own while another has its place
        self.nodes = [Node(number, folder, journal) for number in range(plan.workers + 1)]
        self.beats = [beat(name, folder, env) for name in ("beat-a", "beat-b")]
        self.metrics, self.page = metrics(folder, env)

    @property
    def programs(self) -> list[Program]:
        return [*(node.program for node in self.nodes), *self.beats, self.metrics]

    def settle(self, worker: str) -> Node:
        """The node of a new worker: the first that none of the others has."""
        alive = {other.name for other in self.everybody}
        self._held = {name: node for name, node in self._held.items() if name in alive}
        node = next(node for node in self.nodes if node not in self._held.values())
        self._held[worker] = node
        return node

    @property
    def nodes_at_work(self) -> list[Node]:
        """Those that are up, and whose worker is not struck."""
        nodes = [self._held[worker.name] for worker in self.workers if not worker.struck]
        return [node for node in nodes if node.program.ready]

    def leader(self) -> Program | None:
        """The beat that leads, None where none does."""
        lease = app.redis.get(app.keys.beat) or ""
        return next((beat for beat in self.beats if f":{beat.pid}:" in lease), None)

    @property
    def under_way(self) -> int:
        """Strikes that are not over."""
        return super().under_way + len(self._later)

    def later(self, after_s: float, end: Callable[[], None]) -> None:
        """A strike that `end` ends after so many seconds has begun."""
        self._later.append((time.monotonic() + after_s, end))

    def look(self) -> None:
        """As the workers', and for every other program."""
        super().look()
        for due in [one for one in self._later if one[0] <= time.monotonic()]:
            self._later.remove(due)
            try:
                due[1]()
            except OSError:  # a node that is just being started
                self.later(AGAIN_S, due[1])
        for program in self.programs:
            if death := program.look():
                self.quit.append(death)

    def places(self) -> list[Place]:
        """The processes whose memory and descriptors are judged."""
        found = [Place(worker.name, worker.child.pid) for worker in tuple(self.everybody)]
        found += [Place(program.name, program.pid) for program in (*self.beats, self.metrics)]
        return [*found, Place("redis", self.server.pid)]

    def close(self) -> None:
        super().close()
        for program in self.programs:
            program.end()


async def tables(url: str) -> None:
    """Make them."""
    db = Database(url)
    await db.migrate()
    await db.close()


@contextmanager
def soaked(plan: Plan, folder: Path) -> Iterator[Soaked]:
    """A cluster with all its programs up, on an empty Redis and an empty database; nothing of it is left.

    The app of this process talks to it: there is one in a process.
    """
    with ExitStack() as stack:
        server = stack.enter_context(SafeRedis())
        database = stack.enter_context(sql(folder, postgres=plan.postgres))
        app._given = Settings(broker_url=server.url, database_url=database.url)
        asyncio.run(tables(database.url))
        with closing(Soaked(plan, server, database, folder)) as cluster:
            for node in cluster.nodes:
                stack.enter_context(node.proxy)
            wait_for(cluster.programs, READY_S)
            ready = cluster.until(
                lambda: all(worker.ready_at is not None for worker in cluster.workers) or None,
                within_s=READY_S,
            )
            assert ready, "the workers do not start"
            yield cluster
