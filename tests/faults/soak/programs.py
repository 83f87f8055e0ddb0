"""The programs beside the workers: beats, `gaelp metrics`, model servers behind proxies, Redis, SQL."""

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
import redis

from faults.history.probes import PATH
from gaelp_tasks.demo.parts import Child, Part
from gaelp_tasks.demo.programs import beat_part, ticking
from support.eventually import eventually
from support.ports import free_port
from support.postgres_server import PostgresServer
from support.proxy import Proxy
from support.redis_server import RedisServer

__all__ = ["Node", "Postgres", "Program", "SafeRedis", "Sql", "Sqlite", "beat", "metrics", "sql"]


LOADED_S = 60.0  #: for Redis to read its file


class Program:
    """One that is there all the time: it is started again when it has ended, as a supervisor does."""

    def __init__(self, part: Part, ready: Callable[[Child], object]) -> None:
        self.name = part.name
        self._part = part
        self._ready = ready
        self._child = Child(part)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def ready(self) -> bool:
        return bool(self._ready(self._child))

    def look(self) -> str:
        """Start it again where it has ended by itself, and say so; '' where it lives."""
        if self._child.alive:
            return ""
        death = str(self._child.death())
        self._child = Child(self._part)
        return death

    def kill(self) -> None:
        """SIGKILL, and a new one in its place."""
        self.end()
        self._child = Child(self._part)

    def end(self) -> None:
        """SIGKILL."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.stop()


def beat(name: str, folder: Path, env: dict[str, str]) -> Program:
    """One of the beats; ready when it ticks."""
    part = beat_part(env, folder / name, log=folder / f"{name}.log")
    return Program(replace(part, name=name), ticking)


def metrics(folder: Path, env: dict[str, str]) -> tuple[Program, str]:
    """`gaelp metrics`, and the address of its page."""
    at = f"127.0.0.1:{free_port()}"
    command = (sys.executable, "-m", "gaelp_tasks.cli", "metrics")
    part = Part(
        name="metrics",
        command=command,
        cwd=folder,
        env={**env, "GAELP_METRICS_ADDRESS": at},
        log=folder / "metrics.log",
    )
    return Program(part, lambda child: "Metrics are at" in child.output()), f"http://{at}/metrics"


class Node:
    """A model server at one address; workers reach it through a proxy that can be cut."""

    def __init__(self, number: int, folder: Path, journal: Path) -> None:
        self.name = f"node-{number}"
        self._port = free_port()
        self.direct = f"http://127.0.0.1:{self._port}"  #: beside the proxy
        command = (sys.executable, "-m", "faults.soak.model_server", str(journal), str(self._port))
        part = Part(name=self.name, command=command, env=PATH, log=folder / f"{self.name}.log")
        self.program = Program(part, lambda child: child.output().strip())
        self.proxy = Proxy(self._port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"


class SafeRedis(RedisServer):
    """A Redis that a kill makes forget nothing: `appendfsync always`, as docs/redis.md asks for that."""

    def start(self) -> None:
        super().start()
        eventually(self._is_safe, within_s=LOADED_S, what="Redis has read its file")

    def _is_safe(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.config_set("appendfsync", "always"))
            except redis.ResponseError:  # it refuses that while it reads its file
                return False


class Sql(Protocol):
    """The database, and how it is taken away for a while."""

    url: str
    kind: str

    def away(self, pause: Callable[[float], None]) -> None:
        """Take it away, let the cluster live without it for some seconds, bring it back."""


class Postgres:
    """A real one, which is shut down and started again."""

    kind = "PostgreSQL"
    AWAY_S = 3.0

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.new_database()

    def away(self, pause: Callable[[float], None]) -> None:
        self._server.stop()
        try:
            pause(self.AWAY_S)
        finally:
            self._server.start()


class Sqlite:
    """A file, which somebody else locks: nobody can write meanwhile."""

    kind = "SQLite"
    LOCKED_S = 8.0

    def __init__(self, folder: Path) -> None:
        self._file = folder / "gaelp.db"
        self.url = f"sqlite:///{self._file}"

    def away(self, pause: Callable[[float], None]) -> None:
        other = sqlite3.connect(self._file, isolation_level=None, timeout=10.0)
        try:
            other.execute("BEGIN IMMEDIATE")
            pause(self.LOCKED_S)
            other.execute("ROLLBACK")
        finally:
            other.close()


@contextmanager
def sql(folder: Path, *, postgres: bool) -> Iterator[Sql]:
    """PostgreSQL where that is wanted and installed, else SQLite."""
    server = None
    if postgres:
        try:
            server = PostgresServer()
        except pytest.skip.Exception as absent:
            sys.stderr.write(f"SQLite: {absent}\n")
    if server is None:
        yield Sqlite(folder)
        return
    with server:
        yield Postgres(server)


def wait_for(programs: list[Program], within_s: float) -> None:
    """Raises AssertionError where one is not ready in time."""
    until = time.monotonic() + within_s
    while late := [program.name for program in programs if not program.ready]:
        assert time.monotonic() < until, f"not ready within {within_s:g} s: {', '.join(late)}"
        time.sleep(0.05)
