"""A Redis, a database, a worker beside a scripted node, and replicas of the API that may be killed."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from gaelp_tasks.db.accepted import Accepted
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.acceptance import Acceptance
from gaelp_tasks.streams import End, parse
from support.api_server import ApiServer
from support.elsewhere import elsewhere
from support.eventually import eventually
from support.redis_server import RedisServer
from support.worker import WorkerProcess

MODEL = "script:latest"
EVERYTHING = 10_000


class AcceptedCluster:
    """`with AcceptedCluster(folder, database_url) as cluster: ...`."""

    def __init__(self, folder: Path, database_url: str, *, token_s: float = 0.02) -> None:
        self._folder = folder
        self._url = database_url
        self._token_s = token_s
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(16)
        self._asked = 0
        self.told: dict[str, str] = {}  #: what was answered 202: id -> question

    def __enter__(self) -> Self:
        try:
            self.redis = self._stack.enter_context(RedisServer())
            self.place = self._stack.enter_context(elsewhere(self.redis.url))
            self.node = self._stack.enter_context(scripted(self._token_s))
            asyncio.run(self._migrate())
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        self._stack.close()

    def work(self, name: str = "worker") -> WorkerProcess:
        """A worker from now on."""
        settings = {"GAELP_BROKER_URL": self.redis.url, "GAELP_OLLAMA_NODES": self.node}
        worker = WorkerProcess(self._folder, name=name, at=self.place.app, GAELP_NUM_PARALLEL="8", **settings)
        return self._stack.enter_context(worker)

    def replicas(self, *places: tuple[str, int]) -> list[ApiServer]:
        """Replicas that die at these places, started together; ("nowhere", 0) lives on."""

        def start(place: tuple[str, int]) -> ApiServer:
            settings = {"GAELP_BROKER_URL": self.redis.url, "GAELP_DATABASE_URL": self._url}
            made = ApiServer(self._folder, *place_words(place), program="faults.dying_api", **settings)
            made.start(dies=place[0] != "nowhere")
            return made

        servers = list(self._pool.map(start, places))
        for server in servers:
            self._stack.push(server.__exit__)
        return servers

    def submit(self, server: ApiServer, count: int, *, words: int = 8) -> Counter[int]:
        """Ask for so many at once; how many of each status came, 0 for none."""
        headers = {"Authorization": f"Bearer {server.token()}"}

        def ask(number: int) -> int:
            question = f"question {number} " + "word " * words
            try:
                answer = requests.post(
                    f"{server.url}/api/v1/invocations",
                    json={"prompt": question, "model": MODEL},
                    headers=headers,
                    timeout=20,
                )
            except requests.RequestException:
                return 0
            if answer.status_code == requests.codes.accepted:
                self.told[answer.json()["id"]] = question
            return answer.status_code

        first, self._asked = self._asked, self._asked + count
        return Counter(self._pool.map(ask, range(first, first + count)))

    def rows(self) -> dict[str, Acceptance]:
        """What is in SQL, with its results."""
        return asyncio.run(self._rows())

    def drain(self, *, within_s: float = 60.0) -> dict[str, Acceptance]:
        """Wait until everything in SQL is over; each was told once, and nothing else was ever run."""
        rows = eventually(self._all_over, within_s=within_s, what="everything accepted is over")
        lost = self.told.keys() - rows.keys()
        assert not lost, f"{len(lost)} of {len(self.told)} accepted ones are not in SQL"
        redis, keys = self.place.app.redis, self.place.app.keys
        for name, row in rows.items():
            assert row.standing.value == "done", (name, row.standing, row.error)
            if name in self.told:
                assert self.told[name].strip() in json.loads(row.result)["text"]
            events = [parse(*entry) for entry in redis.xrange(keys.stream(name))]
            told = {str(event.facts.get("result")) for event in events if isinstance(event, End)}
            assert len(told) <= 1, f"{name} has {len(told)} ends"
        stem = keys.stream("")
        ran = {str(key).removeprefix(stem) for key in redis.scan_iter(match=f"{stem}*")}
        assert ran <= rows.keys(), f"ghosts: {sorted(ran - rows.keys())[:3]}"
        return rows

    def _all_over(self) -> dict[str, Acceptance] | None:
        rows = self.rows()
        return rows if all(row.is_over for row in rows.values()) else None

    async def _migrate(self) -> None:
        db = Database(self._url)
        await db.migrate()
        await db.close()

    async def _rows(self) -> dict[str, Acceptance]:
        db = Database(self._url)
        try:
            mine = Accepted(db, None)
            found = await mine.listed(most=EVERYTHING)
            if any(not row.is_over for row in found):
                return {row.id: row for row in found}
            whole = [await mine.find(row.id) for row in found]
            return {row.id: row for row in whole if row is not None}
        finally:
            await db.close()


def place_words(place: tuple[str, int]) -> tuple[str, str]:
    name, times = place
    return name, str(times)


@contextmanager
def scripted(token_s: float) -> Iterator[str]:
    """The address of a node that says each question again."""
    command = [sys.executable, "-m", "gaelp_tasks.cli", "demo", "scripted", "--num-parallel", "8"]
    with subprocess.Popen(
        [*command, "--token-s", str(token_s)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.wait(timeout=10)
