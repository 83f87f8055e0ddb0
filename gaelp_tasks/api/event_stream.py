"""Server-sent events: a frame for each, heartbeats in silence, nothing kept for who does not read."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gaelp_tasks.errors import BrokerUnavailable, DatabaseUnavailable, NotFound, QueueFull
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.runtime import going_on
from gaelp_tasks.services.reading import Told

__all__ = ["EventStream", "Readers"]

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10  #: seconds of silence
SLOW_S = 30.0  #: a reader that takes nothing for so long is cut; what it has seen it need not read again
SHARES = 4  #: one user has at most one of so many equal parts of the streams
AGAIN_S = 5.0  #: who finds no stream free may ask again after this
AGAIN_MS = 1000  #: a browser comes back after this
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Readers:
    """How many read from this process, one user at most a quarter of them."""

    def __init__(self, most: int) -> None:
        self._most, self._most_of_one = most, max(1, most // SHARES)
        self._taken: Counter[tuple[str, str]] = Counter()  #: by tenant and user

    @property
    def now(self) -> int:
        """All of them."""
        return self._taken.total()

    def enter(self, caller: Caller) -> None:
        """One more; who enters leaves. Raises QueueFull."""
        if self._taken[_who(caller)] >= self._most_of_one:
            why = f"You read as many streams here as one user may ({self._most_of_one}): ask again later."
            raise QueueFull(why, retry_after_s=AGAIN_S)
        if self.now >= self._most:
            raise QueueFull(
                "As many streams are read here as may be: ask again later.", retry_after_s=AGAIN_S
            )
        self._taken[_who(caller)] += 1

    def leave(self, caller: Caller) -> None:
        """One less."""
        self._taken[_who(caller)] -= 1
        self._taken += Counter()  # without those that read none


def _who(caller: Caller) -> tuple[str, str]:
    return caller.tenant, caller.name


class EventStream(Response):
    """Sends what is told until it ends or its reader goes; waits for a slow one, and cuts a stuck one."""

    media_type = "text/event-stream"

    def __init__(
        self, told: AsyncGenerator[Told, None], readers: Readers, caller: Caller, *, slow_s: float = SLOW_S
    ) -> None:
        readers.enter(caller)
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._told = told
        self._readers, self._caller = readers, caller
        self._slow_s = slow_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's signature
        """As ASGI calls it."""
        works = [asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            self._readers.leave(self._caller)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        silent_s = 0
        try:
            async with aclosing(self._told) as told:
                await self._out(send, f"retry: {AGAIN_MS}\n\n".encode())
                async for one in told:
                    if not going_on():
                        return
                    silent_s = 0 if one.event else silent_s + 1
                    if one.event:
                        await self._out(send, frame(one))
                    elif silent_s % HEARTBEAT_S == 0:
                        await self._out(send, b":\n\n")
        except TimeoutError:
            logger.info("A reader of a stream took nothing for %g s and is cut.", self._slow_s)
            return  # without the last frame: the connection is closed
        except (BrokerUnavailable, DatabaseUnavailable, NotFound) as error:
            logger.warning("A stream breaks off, and its reader comes back: %s", error)
        await self._out(send, b"", more=False)

    async def _out(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Waits until the connection has room."""
        async with asyncio.timeout(self._slow_s):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def frame(told: Told) -> bytes:
    """One event as it travels."""
    name = f"id: {told.id}\n" if told.id else ""
    data: Any = json.dumps(told.data, separators=(",", ":"))
    return f"{name}event: {told.event}\ndata: {data}\n\n".encode()
