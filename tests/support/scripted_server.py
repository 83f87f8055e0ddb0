"""An HTTP server whose every byte a test decides: faults over real sockets, without a model.

    async with ScriptedServer() as server:
        server.on("/api/chat", hang)          # async def hang(request, reply): await reply.gone.wait()
        client = LocalOllamaClient("m", server.url)

Without a handler of its own a path answers as a small, healthy Ollama does. `faulty_node.py` has nodes that
fail as a whole and come back.
"""

import asyncio
import hashlib
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

CHAT_MODEL = "tiny:latest"
EMBED_MODEL = "tiny-embed:latest"
TOKENS = ("The", " sky", " is", " blue", ".")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]  #: names in lower case
    body: bytes
    connection: int  #: 0 for the first connection of this server, 1 for the second ...

    def json(self) -> Any:
        return json.loads(self.body)


class Reply:
    """The answer to one request, written as the handler likes it."""

    def __init__(self, transport: asyncio.Transport, gone: asyncio.Event) -> None:
        self.gone = gone  #: the client has left
        self._transport = transport
        self._chunked = False

    def head(self, status: int = 200, *, headers: dict[str, str] | None = None, chunked: bool = True) -> None:
        """Status and headers; with `chunked` the body follows in `send`s and one `end`."""
        self._chunked = chunked
        given = {"Content-Type": "application/x-ndjson", **(headers or {})}
        if chunked:
            given["Transfer-Encoding"] = "chunked"
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.raw(f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode())

    def raw(self, data: bytes) -> None:
        self._transport.write(data)

    def send(self, data: bytes) -> None:
        self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def line(self, document: Any) -> None:
        self.send(json.dumps(document).encode() + b"\n")

    def token(self, text: str) -> None:
        self.line({"model": CHAT_MODEL, "message": {"role": "assistant", "content": text}, "done": False})

    def last(self, reason: str = "stop", **figures: Any) -> None:
        self.line(
            {"model": CHAT_MODEL, "message": {"content": ""}, "done": True, "done_reason": reason, **figures}
        )

    def end(self) -> None:
        self.raw(b"0\r\n\r\n")

    def whole(self, document: Any, status: int = 200, **headers: str) -> None:
        """A JSON answer in one piece; a str is sent as HTML."""
        html = isinstance(document, str)
        body = document.encode() if html else json.dumps(document).encode()
        kind = "text/html" if html else "application/json"
        self.head(
            status,
            headers={"Content-Type": kind, "Content-Length": str(len(body)), **headers},
            chunked=False,
        )
        self.raw(body)

    def cut(self) -> None:
        """Close the connection in good manners, wherever the answer is."""
        self._transport.close()

    def reset(self) -> None:
        """Break the connection: the client's next read fails."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


Handler = Callable[[Request, Reply], Awaitable[None]]


class ScriptedServer:
    """Listens on a port of 127.0.0.1 (0: a free one; with TLS where `tls` is given) until the block ends."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, prefix: str = "", port: int = 0) -> None:
        self.requests: list[Request] = []
        self.connections = 0  #: opened so far
        self._open: set[_Connection] = set()
        self._handlers: dict[str, Handler] = {}
        self._tls = tls
        self._prefix = prefix
        self._port = port
        self._loaded: list[str] = []

    def on(self, path: str, handler: Handler) -> None:
        """Answer a path (without the prefix) by this handler from now on; "*" is every other path."""
        self._handlers[path] = handler

    def heal(self) -> None:
        """Answer everything as a healthy server from now on."""
        self._handlers.clear()

    def asked(self, path: str) -> list[Request]:
        """The requests of one path so far."""
        return [request for request in self.requests if request.path == self._prefix + path]

    async def answer(self, request: Request, reply: Reply) -> None:
        path = request.path.removeprefix(self._prefix)
        handler = self._handlers.get(path) or self._handlers.get("*") or self._healthy
        await handler(request, reply)

    async def _healthy(self, request: Request, reply: Reply) -> None:
        asked = request.json() if request.body else {}
        model = asked.get("model", "")
        if model and model not in {CHAT_MODEL, EMBED_MODEL, CHAT_MODEL.removesuffix(":latest")}:
            reply.whole({"error": f"model '{model}' not found"}, 404)
            return
        match request.path.removeprefix(self._prefix):
            case "/api/version":
                reply.whole({"version": "0.33.0"})
            case "/api/tags":
                reply.whole({"models": [_listed(EMBED_MODEL, "bert"), _listed(CHAT_MODEL, "llama")]})
            case "/api/show":
                embeds = model == EMBED_MODEL
                reply.whole({"capabilities": ["embedding" if embeds else "completion"], "details": {}})
            case "/api/ps":
                reply.whole({"models": [{"name": name, "context_length": 2048} for name in self._loaded]})
            case "/api/generate":
                self._loaded.append(CHAT_MODEL)
                reply.whole({"model": model, "done": True, "done_reason": "load"})
            case "/api/embed":
                self._loaded.append(EMBED_MODEL)
                texts = asked["input"] or []
                vectors = [_vector(text) for text in texts]
                reply.whole({"model": model, "embeddings": vectors, "prompt_eval_count": len(texts)})
            case "/api/chat":
                self._chat(asked, reply)
            case _:
                reply.whole({"error": "not found"}, 404)

    def _chat(self, asked: Any, reply: Reply) -> None:
        self._loaded.append(CHAT_MODEL)
        limit = asked.get("options", {}).get("num_predict", len(TOKENS))
        reply.head()
        for token in TOKENS[:limit]:
            reply.token(token)
        reason = "length" if limit < len(TOKENS) else "stop"
        prompt_tokens = sum(len(message["content"].split()) for message in asked["messages"])
        reply.last(
            reason, prompt_eval_count=prompt_tokens, eval_count=len(TOKENS[:limit]), load_duration=10**9
        )
        reply.end()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), "127.0.0.1", self._port, ssl=self._tls
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}{self._prefix}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        failures = [failure for connection in tuple(self._open) for failure in await connection.stop()]
        await self._server.wait_closed()
        if failures:
            raise failures[0]


class _Connection(asyncio.Protocol):
    """Reads requests one after another; notices at once when the client leaves."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._number = server.connections
        self._buffer = b""
        self._gone = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._server.connections += 1
        self._server._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0))
        if len(rest) < size:
            return
        self._buffer = rest[size:]
        method, path, _ = first.split(" ")
        request = Request(method, path, headers, rest[:size], self._number)
        self._server.requests.append(request)
        reply = Reply(self._transport, self._gone)
        self._tasks.append(asyncio.get_running_loop().create_task(self._server.answer(request, reply)))

    async def stop(self) -> list[BaseException]:
        """End the handlers, drop the connection; what the handlers failed with."""
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._transport.abort()
        await self._gone.wait()
        return [end for end in ends if isinstance(end, Exception)]


def _listed(name: str, family: str) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "size": 1000, "digest": digest, "details": {"family": family}}


def _vector(text: str) -> list[float]:
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:4]]
