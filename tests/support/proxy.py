"""A TCP proxy before a local server, on a thread of its own, which falls silent as a broken network does."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

CHUNK = 65_536

T = TypeVar("T")


class Proxy:
    """`with Proxy(server.port) as proxy: ... proxy.port`; passes everything on until it is silenced.

    While it is silent no byte passes and no end of a connection either, in neither direction: the server
    keeps what a dead client had opened, as it does when the client's host is gone. New connections are taken
    and lead nowhere.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0  #: 0 until the block begins
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def silence(self) -> None:
        """Let nothing pass any more."""
        self._call(self._passing.clear)

    def resume(self) -> None:
        """Pass on what waits, and all that comes."""
        self._call(self._passing.set)

    def reset(self) -> None:
        """Break every connection at both ends, and pass on what new ones bring."""
        self._call(self._break)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = self._run(asyncio.start_server(self._joined, "127.0.0.1", 0))
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def _call(self, what: Callable[[], object]) -> None:
        async def call() -> None:
            what()

        self._run(call())

    def _break(self) -> None:
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._passing.set()

    async def _end(self) -> None:
        self._listener.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both directions of one connection, until either has ended."""
        ends = {writer}
        self._writers.add(writer)
        try:
            await self._passing.wait()
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            ends.add(server_writer)
            self._writers.add(server_writer)
            for one in ends:
                one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, server_writer))
                both.create_task(self._pass(server_reader, writer))
        except* OSError:
            pass  # the server is away, or broke the connection: so does this end
        finally:
            self._writers -= ends
            for one in ends:
                one.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        await self._passing.wait()  # an end does not pass either
        raise ConnectionResetError("one end has closed")
