"""HTTP to one node. The only module that knows aiohttp; whatever goes wrong leaves it as a NodeError."""

import asyncio
import math
import os
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import wait
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import aiohttp

from gaelp_tasks.clients.address import without_credentials
from gaelp_tasks.clients.refusals import refusal, retry_after_s
from gaelp_tasks.errors import NodeError, NodeFailed, NodeUnreachable, RequestRefused, SettingsError

__all__ = ["ByteStream", "Transport"]

MAX_ANSWER_BYTES = 256 * 1024**2  #: of a JSON answer; ten thousand embeddings stay below
MAX_REFUSAL_BYTES = 64 * 1024  #: of an error's body
DRAIN_S = (
    0.5  #: the end of a finished answer comes with its last line, or its connection is not worth keeping
)

#: A body may break inside aiohttp's parser as HttpProcessingError, which is no ClientError.
FOREIGN = (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError)

#: Foreign error -> ours and its sentence; the first that fits.
MEANINGS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[NodeError], str], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch),
        NodeUnreachable,
        "{node} shows a certificate that is not trusted: set GAELP_OLLAMA_CA_FILE to its CA.",
    ),
    (
        (aiohttp.ClientSSLError, ssl.SSLError),
        NodeUnreachable,
        "{node} does not answer in TLS: is it http:// instead of https://?",
    ),
    (
        aiohttp.ConnectionTimeoutError,
        NodeUnreachable,
        "{node} accepted no connection within {connect_s} s (GAELP_CONNECT_TIMEOUT_S): is the host up?",
    ),
    (
        aiohttp.ClientConnectorError,
        NodeUnreachable,
        "{node} cannot be reached ({reason}): is Ollama running there?",
    ),
    (
        (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError),
        RequestRefused,
        "{node} is no address that can be asked: correct it.",
    ),
    (
        (aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError),
        NodeFailed,
        "{node} does not speak HTTP as it should ({reason}): is that an Ollama server?",
    ),
    (
        FOREIGN,
        NodeUnreachable,
        "{node} broke the connection before its answer was complete ({reason}): try again, or read its log.",
    ),
)

Sessions = dict[asyncio.AbstractEventLoop, aiohttp.ClientSession]


class Transport:
    """Connections to one Ollama server, pooled per event loop. Raises SettingsError for an unusable address.

    `until` is a time of the running loop's clock; when it passes, the call raises TimeoutError and its
    connection is closed. All other failures are NodeErrors.
    """

    def __init__(
        self, api_base: str, *, connect_s: float, headers: Mapping[str, str] | None = None, ca_file: str = ""
    ) -> None:
        self._base = api_base.rstrip("/")
        self.node = without_credentials(self._base)
        self._connect_s = connect_s
        # no compression: a proxy would hold tokens back until its block is full
        self._headers = {
            "User-Agent": "gaelp-tasks",
            "Accept-Encoding": "identity",
            **_checked(headers or {}),
        }
        self._ssl = _trusting(ca_file) if ca_file else True
        self._sessions: Sessions = {}
        weakref.finalize(self, _give_back, self._sessions)

    async def ask(self, path: str, payload: bytes | None = None, *, until: float, model: str = "") -> bytes:
        """The whole answer to GET, or to POST of a JSON payload. `model` is what a 404 would mean."""
        try:
            async with asyncio.timeout_at(until) as limit:
                response = await self._send(path, payload, model)
                try:
                    answer = await _up_to(MAX_ANSWER_BYTES + 1, response)
                finally:
                    response.close()
        except FOREIGN as error:
            raise self.meaning(error, late=limit.expired()) from error
        if len(answer) > MAX_ANSWER_BYTES:
            raise NodeFailed(
                f"{self.node} answered with more than {MAX_ANSWER_BYTES:,} bytes: ask for less at once.",
                node=self.node,
            )
        return answer

    @asynccontextmanager
    async def stream(
        self, path: str, payload: bytes, *, until: float | None, model: str = ""
    ) -> "AsyncIterator[ByteStream]":
        """POST, then read as it comes; leaving closes the connection, which is what stops the model."""
        try:
            async with asyncio.timeout_at(until) as limit:
                response = await self._send(path, payload, model)
        except FOREIGN as error:
            raise self.meaning(error, late=limit.expired()) from error
        body = ByteStream(self, response)
        try:
            yield body
        finally:
            body.close()

    async def close(self) -> None:
        """Close all connections, those that other loops opened too."""
        here = asyncio.get_running_loop()
        while self._sessions:
            loop, session = self._sessions.popitem()
            if loop is here or loop.is_closed():
                await session.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))

    async def _send(self, path: str, payload: bytes | None, model: str) -> aiohttp.ClientResponse:
        session = await self._session()
        response = await session.request(
            "GET" if payload is None else "POST",
            self._base + path,
            data=payload,
            headers=None if payload is None else {"Content-Type": "application/json"},
            allow_redirects=False,
        )
        if response.status < HTTPStatus.MULTIPLE_CHOICES:
            return response
        try:
            answer = await _up_to(MAX_REFUSAL_BYTES, response)
        finally:
            response.close()
        wait_s = retry_after_s(response.headers.get("Retry-After"), now_unix=time.time())
        raise refusal(response.status, answer, node=self.node, path=path, model=model, wait_s=wait_s)

    async def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_s),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
            for gone in [loop for loop in self._sessions if loop.is_closed()]:
                await self._sessions.pop(gone).close()
        return session

    def meaning(self, error: Exception, *, late: bool) -> NodeError | TimeoutError:
        """Our error for one of aiohttp's; `late` when a limit of ours caused it."""
        if late:
            return TimeoutError()
        kind, words = next((kind, words) for foreign, kind, words in MEANINGS if isinstance(error, foreign))
        words = words.format(node=self.node, reason=_reason(error), connect_s=f"{self._connect_s:g}")
        return kind(words, node=self.node)


class ByteStream:
    """The body of an answer that is still being written."""

    def __init__(self, transport: Transport, response: aiohttp.ClientResponse) -> None:
        self._transport = transport
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._until = math.inf
        self._alarm: asyncio.TimerHandle | None = None
        self._late = False

    async def read(self, until: float | None) -> bytes:
        """What has arrived, at least one byte; b'' at the end. `until` None waits without a limit."""
        self._until = math.inf if until is None else until
        if self._alarm is None or self._alarm.when() > self._until:
            self._set_alarm()
        try:
            return await self._response.content.readany()
        except FOREIGN as error:
            raise self._transport.meaning(error, late=self._late) from error
        finally:
            self._until = math.inf  # a reader that takes its time is not late

    def close(self) -> None:
        """Hang up."""
        self._until = math.inf
        self._set_alarm()
        self._response.close()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._until, self._ring) if self._until < math.inf else None

    def _ring(self) -> None:
        """Hang up if it is time: each token moves the time on, and an alarm for each would cost too much."""
        if self._until > self._loop.time():
            self._set_alarm()
        else:
            self._late = True
            self._response.close()

    async def drain(self) -> None:
        """Read the end of an answer that is complete, so that its connection can serve again."""
        until = asyncio.get_running_loop().time() + DRAIN_S
        with suppress(NodeError, TimeoutError):
            while await self.read(until):
                pass


def _give_back(sessions: Sessions) -> None:
    """Close what a forgotten client left open: synchronous code has no loop to await `close` on."""
    closing = [
        asyncio.run_coroutine_threadsafe(session.close(), loop)
        for loop, session in sessions.items()
        if loop.is_running()
    ]
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # on a loop's own thread waiting would block the very loop that closes
        wait(closing, timeout=DRAIN_S)


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not name.isascii() or not name or any(character in name + value for character in "\r\n\0"):
            raise SettingsError("GAELP_OLLAMA_HEADERS: a header's name or value holds characters it cannot.")
    return dict(headers)


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"GAELP_OLLAMA_CA_FILE: {ca_file} cannot be used ({error.strerror}).") from None


async def _up_to(limit_bytes: int, response: aiohttp.ClientResponse) -> bytes:
    """The body, or its beginning where it is longer."""
    pieces = []
    room_bytes = limit_bytes
    while room_bytes > 0 and (piece := await response.content.readany()):
        pieces.append(piece[:room_bytes])
        room_bytes -= len(piece)
    return b"".join(pieces)


def _reason(error: Exception) -> str:
    """The operating system's word for it; asyncio puts the address into `strerror`, which we name already."""
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or type(error).__name__
