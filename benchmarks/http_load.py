"""A load tool: connections that each ask as soon as they were answered. `http_load.py JSON` prints JSON.

It shares the machine with the server that it measures, so it only looks for the end of an answer.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import uvloop
from figures import percentile

__all__ = ["Load", "Seen"]

HOST = "127.0.0.1"
END = b"\r\n\r\n"
LENGTH = b"content-length: "


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to ask, by how many connections, for how long."""

    port: int
    paths: list[str]  #: the connections take them in turn
    status: int = 200  #: any other answer is a wrong one
    method: str = "GET"
    tokens: list[str] = field(default_factory=list)  #: who asks: the connections in turn
    body: str = ""
    connections: int = 16
    warm_s: float = 0.5  #: at first, and not counted
    seconds: float = 5.0

    def request(self, number: int) -> bytes:
        """What the connection of this number asks, as it goes over the wire."""
        lines = [
            f"{self.method} {self.paths[number % len(self.paths)]} HTTP/1.1",
            "Host: 127.0.0.1",
            "Accept: */*",
        ]
        if self.tokens:
            lines.append(f"Authorization: Bearer {self.tokens[number % len(self.tokens)]}")
        if self.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body.encode())}"]
        return "\r\n".join([*lines, "", self.body]).encode()


@dataclass(kw_only=True)
class Seen:
    """What came of it."""

    seconds: float = 0.0
    wrong: int = 0
    wrong_answer: str = ""  #: the first one
    took_ms: list[float] = field(default_factory=list)  #: of each that was answered rightly, in that time

    def told(self) -> dict[str, Any]:
        """In short."""
        return {
            "answered": len(self.took_ms),
            "seconds": self.seconds,
            "p50_ms": percentile(self.took_ms, 50),
            "p99_ms": percentile(self.took_ms, 99),
            "wrong": self.wrong,
            "wrong_answer": self.wrong_answer,
        }


class Connection(asyncio.Protocol):
    """Asks until it is told to stop."""

    def __init__(self, load: Load, number: int, seen: Seen, lost: asyncio.Event) -> None:
        self._request = load.request(number)
        self._begins = f"HTTP/1.1 {load.status} ".encode()
        self._seen = seen
        self._lost = lost
        self._got = b""
        self._asked_at = 0.0
        self.counts = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._got = self._got + data if self._got else data
        head = self._got.find(END)
        if head < 0:
            return
        at = self._got.find(LENGTH, 0, head + 2) + len(LENGTH)
        if len(self._got) < head + len(END) + int(self._got[at : self._got.index(b"\r\n", at)]):
            return
        if self.counts:
            if self._got.startswith(self._begins):
                self._seen.took_ms.append((time.perf_counter() - self._asked_at) * 1000)
            else:
                self._seen.wrong += 1
                self._seen.wrong_answer = self._seen.wrong_answer or self._got.decode(errors="replace")
        self._got = b""
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        self._lost.set()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self._transport.write(self._request)


async def measure(load: Load) -> Seen:
    """Raises OSError where nobody listens, or a connection is closed."""
    seen, lost, loop = Seen(), asyncio.Event(), asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(partial(Connection, load, number, seen, lost), HOST, load.port))[1]
        for number in range(load.connections)
    ]
    await asyncio.sleep(load.warm_s)
    for connection in connections:
        connection.counts = True
    begun = time.perf_counter()
    await asyncio.sleep(load.seconds)
    seen.seconds = time.perf_counter() - begun
    if lost.is_set():
        raise ConnectionError("the server has closed a connection")
    return seen


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(Load(**json.loads(sys.argv[1])))).told()))
