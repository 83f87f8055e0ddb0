"""A node at one address that fails in every way there is, and comes back.

async with FaultyNode() as node:
    await node.kill()
    await node.restart()
"""

import asyncio
import socket
from types import TracebackType
from typing import Self

from support.ports import free_port
from support.scripted_server import Handler, Reply, Request, ScriptedServer


async def hang(request: Request, reply: Reply) -> None:
    """Take the request, never answer."""
    await reply.gone.wait()


async def busy(request: Request, reply: Reply) -> None:
    reply.whole({"error": "server busy, please try again. maximum pending requests exceeded"}, 503)


async def break_down(request: Request, reply: Reply) -> None:
    reply.whole({"error": "llama runner process has terminated"}, 500)


async def drop(request: Request, reply: Reply) -> None:
    """Break the connection instead of an answer."""
    reply.reset()


async def die_before_a_word(request: Request, reply: Reply) -> None:
    """Begin an answer, say nothing, break the connection."""
    reply.head()
    reply.token("")
    reply.reset()


async def die_in_mid_stream(request: Request, reply: Reply) -> None:
    reply.head()
    reply.token("Once")
    reply.token(" upon")
    reply.cut()


class FaultyNode:
    """A scripted server whose condition a test changes; its address stays."""

    def __init__(self) -> None:
        self._port = free_port()  # of its own also while nobody listens there
        self.server = ScriptedServer(port=self._port)
        self.handed: list[ScriptedServer] = []  #: servers of earlier lives
        self._hole: list[socket.socket] = []

    @property
    def url(self) -> str:
        return self.server.url

    def asked(self, path: str = "/api/chat") -> int:
        """Requests of a path in all its lives."""
        return sum(len(server.asked(path)) for server in (*self.handed, self.server))

    def on(self, path: str, handler: Handler) -> None:
        self.server.on(path, handler)

    async def kill(self) -> None:
        """End the server: connections break, new ones are refused."""
        await self.server.__aexit__(None, None, None)

    async def black_hole(self) -> None:
        """Nothing answers any more, not even the kernel: what knocks is dropped."""
        await self.kill()
        address = ("127.0.0.1", self._port)
        full = socket.socket()
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind(address)
        full.listen(0)
        self._hole = [full]
        for _ in range(3):
            knock = socket.socket()
            knock.setblocking(False)
            knock.connect_ex(address)
            self._hole.append(knock)

    def freeze(self) -> None:
        """Take every request, answer none: a stopped process."""
        self.on("*", hang)

    async def restart(self) -> None:
        """A new, healthy server at the same address."""
        for sock in self._hole:
            sock.close()
        self._hole = []
        self.handed.append(self.server)
        self.server = ScriptedServer(port=self._port)
        await self.server.__aenter__()

    async def heal(self) -> None:
        """Healthy again, whatever it was."""
        if self._hole or not self.server._server.is_serving():
            await self.restart()
        else:
            self.server.heal()

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in self._hole:
            sock.close()
        if self.server._server.is_serving():
            await self.server.__aexit__(None, None, None)


async def became(look, *, within_s: float = 20.0) -> None:
    """Wait on the loop until `look()` is true."""
    async with asyncio.timeout(within_s):
        while not look():
            await asyncio.sleep(0.005)
