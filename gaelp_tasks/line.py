"""A line to Redis for what is said at every token: redis-py opens it, hiredis reads it, nothing in between.

A round trip through redis-py's asyncio client takes four times the CPU of one through here, and streaming
pays for two per token: the worker's, which writes it, and the reader's (docs/benchmarks.md). Where hiredis is
not installed, as in a producer's base install, redis-py does all of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from gaelp_tasks.connections import ANSWER_S, AsyncRedis, Refused, connect_async, dial
from gaelp_tasks.settings import Settings

try:
    import hiredis
except ImportError:  # the base install
    hiredis = None  # type: ignore[assignment]

__all__ = ["Asks", "Command", "Line", "PlainLine", "open_line"]

Command = tuple[str | int, ...]


class Asks(Protocol):
    """What the writer and the readers of streams need of Redis."""

    def ask(self, *commands: Command) -> Awaitable[list[Any]]:
        """The replies to some commands, in one round trip; an error is a reply, a Refused. Raises `lost`.

        Ask only what may be said twice: a broken connection is opened again, and the question repeated.
        """

    async def aclose(self) -> None:
        """Hang up."""


def open_line(settings: Settings) -> Asks:
    """A line of one's own to the broker, for one event loop; it connects at the first question."""
    return PlainLine(connect_async(settings)) if hiredis is None else Line(settings)


class PlainLine:
    """A line through redis-py alone."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis

    async def ask(self, *commands: Command) -> list[Any]:
        """See Asks."""
        pipe = self._redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute(raise_on_error=False)

    async def aclose(self) -> None:
        """Hang up."""
        await self._redis.aclose()


class Line(asyncio.Protocol):
    """One connection, one question at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: hiredis types it for a single word
        self._pack = cast("Callable[[Command], bytes]", hiredis.pack_command)
        self._parser = hiredis.Reader()
        self._writer: asyncio.StreamWriter | None = None
        self._expected = 0
        self._replies: list[Any] = []
        self._answer: asyncio.Future[list[Any]] | None = None
        self._due = 0.0  #: when the answer is late, by the loop's clock
        self._alarm: asyncio.TimerHandle | None = None

    def ask(self, *commands: Command) -> Awaitable[list[Any]]:
        """See Asks; on an open line the question is on its way when this returns."""
        request = b"".join(map(self._pack, commands))
        if self._writer is None:
            return self._on_a_new_line(request, len(commands))
        answer = self._send(self._writer.transport, request, len(commands))
        return self._on_this_line(answer, request, len(commands))

    async def _on_this_line(
        self, answer: "asyncio.Future[list[Any]]", request: bytes, expected: int
    ) -> list[Any]:
        try:
            return await self._received(answer)
        except ConnectionError:  # as after a restart of Redis, or a firewall's cut of an idle connection
            return await self._on_a_new_line(request, expected)

    async def _on_a_new_line(self, request: bytes, expected: int) -> list[Any]:
        return await self._received(self._send(await self._open(), request, expected))

    async def aclose(self) -> None:
        """Hang up."""
        self._hang_up()

    def _hang_up(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def _open(self) -> asyncio.WriteTransport:
        self._writer = await dial(self._settings)
        self._parser = hiredis.Reader(encoding="utf-8", replyError=Refused)
        self._writer.transport.set_protocol(self)
        return self._writer.transport

    def _send(
        self, transport: asyncio.WriteTransport, request: bytes, expected: int
    ) -> "asyncio.Future[list[Any]]":
        loop = asyncio.get_running_loop()
        self._expected, self._replies = expected, []
        self._answer = loop.create_future()
        self._due = loop.time() + ANSWER_S
        if self._alarm is None:
            self._alarm = loop.call_at(self._due, self._ring, loop)
        if transport.is_closing():
            self.connection_lost(None)
        transport.write(request)
        return self._answer

    async def _received(self, answer: "asyncio.Future[list[Any]]") -> list[Any]:
        try:
            return await answer
        except BaseException:
            self._hang_up()  # a late answer would be taken for the next question's
            raise

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look whether the answer is late: an alarm of its own would cost as much as the question."""
        self._alarm = None
        if self._answer is None or self._answer.done():
            return
        if self._due > loop.time():
            self._alarm = loop.call_at(self._due, self._ring, loop)
        else:
            self._answer.set_exception(TimeoutError(f"no answer within {ANSWER_S:g} s"))

    def data_received(self, data: bytes) -> None:
        """Protocol: bytes came."""
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not False:
            self._replies.append(reply)
        if len(self._replies) == self._expected and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        """Protocol: it broke, or was closed."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(f"Redis hung up ({error or 'EOF'})"))
