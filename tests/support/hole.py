"""A TCP proxy in which single connections fall silent without an error, as half-open ones do."""

import asyncio
import threading
from types import TracebackType
from typing import Self


class _Wire:
    """One connection: what its client has said, and whether it still passes anything on."""

    def __init__(self) -> None:
        self.said = b""
        self.silent = False


class Hole:
    """`with Hole(server.port) as hole: ... hole.port`; `hush(word)` silences those whose client said it."""

    def __init__(self, server_port: int) -> None:
        self.port = 0  #: 0 until the block begins
        self._server_port = server_port
        self._wires: list[_Wire] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hole", daemon=True)

    def hush(self, word: bytes) -> int:
        """Silence, for ever and in both directions, every connection of now that has said so; how many."""
        found = [wire for wire in self._wires if word in wire.said and not wire.silent]
        for wire in found:
            wire.silent = True
        return len(found)

    def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire, ends = _Wire(), [writer]
        self._wires.append(wire)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            ends.append(server_writer)
            await asyncio.gather(
                self._pass(wire, reader, server_writer, heard=True),
                self._pass(wire, server_reader, writer, heard=False),
            )
        except OSError:
            pass  # one end broke the connection: so does this
        finally:
            for one in ends:
                one.transport.abort()

    async def _pass(
        self, wire: _Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, heard: bool
    ) -> None:
        while data := await reader.read(65_536):
            if heard and len(wire.said) < 100_000:
                wire.said += data
            if not wire.silent:
                writer.write(data)
                await writer.drain()
        if not wire.silent:
            writer.close()

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._joined, "127.0.0.1", 0), self._loop
        )
        self._listener = listening.result(timeout=10)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def end() -> None:
            self._listener.close()
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
