"""A private Redis for a test: real, on loopback, append-only, and gone afterwards whatever happens."""

import os
import shutil
import signal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import pytest
import redis

from gaelp_tasks.demo.broker import find_server, server_version, start_broker
from gaelp_tasks.demo.parts import Child, PartFailed
from support.eventually import eventually
from support.needs import lacking
from support.ports import free_port

CACHE = Path(__file__).parents[2] / ".cache"


@cache
def redis_binary() -> Path:
    """The server program: ours, the oldest that all must run with, before one on PATH.

    Without one the test is skipped, in CI it fails.
    """
    try:
        return find_server(CACHE, path="")
    except PartFailed:
        pass  # there is none to fetch for this machine
    try:
        return find_server(CACHE)
    except PartFailed as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no redis-server: {error}")


@cache
def redis_7_binary() -> Path:
    """A server of Redis 7 or later, which tells reading a key from writing it.

    Without one the test is skipped; in CI as root, which installs it, it fails.
    """
    on_path = shutil.which("redis-server")
    for found in (on_path and Path(on_path), redis_binary()):
        if found and (server_version(found) or (0,)) >= (7, 0):
            return found
    return lacking("no redis-server 7.0 or later on PATH (Debian: redis-server)")


class RedisServer:
    """`with RedisServer() as server: ... server.url`; database 0 of a server that nobody else uses.

    `binary` None: `redis_binary()`.
    """

    def __init__(self, binary: Path | None = None) -> None:
        self._binary = binary or redis_binary()
        self._folder = TemporaryDirectory(prefix="gaelp-redis-")
        self.directory = Path(self._folder.name)
        self._child: Child | None = None
        self.port = 0  #: 0 until it was started

    def start(self) -> None:
        """Start it, on the same port and with the same file as the time before; it has read that by then."""
        log = self.directory / "redis.log"
        self._child, self.port = start_broker(
            self._binary, self.directory / "data", log=log, port=self.port or free_port()
        )
        with self.client() as client:
            eventually(lambda: not client.info("persistence")["loading"])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self._running().pid

    def client(self) -> redis.Redis:
        """A client of its own, answering str; the caller closes it."""
        return redis.Redis.from_url(self.url, decode_responses=True)

    def log(self) -> str:
        return self._running().output()

    def stop(self) -> None:
        """End it in good order; `start()` brings it back with its data."""
        self._running().stop()

    def kill(self) -> None:
        """End it as a crash does; `start()` brings it back with what its append-only file holds."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing until `thaw()`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _running(self) -> Child:
        assert self._child is not None, "start() it first"
        return self._child

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        child = self._running()
        if child.alive:
            self.thaw()  # a frozen server would not hear SIGTERM
        child.stop()
        self._folder.cleanup()
