"""Bodies: bounded in size and time, and JSON whatever their content type says, for `curl -d @file`."""

import asyncio
from asyncio import get_running_loop

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gaelp_tasks.api import state

__all__ = ["Bodies", "BodyRefused"]

JSON = (b"content-type", b"application/json")
BATCH = ("POST", "/api/v1/batches")  #: streamed to a file on disk, so it may be longer
PATIENCE_S = 20.0  #: for a body, and beside that
SLOWEST_BYTES_S = 16 * 1024  #: for each so many bytes a second


class Bodies:
    """Refuses a long body by its header, or once too much of it has come; and one that comes too slowly.

    It calls every body JSON; a route that wants its bytes takes the request itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings = state.of(scope["app"]).settings
        is_file = (scope["method"], scope["path"]) == BATCH
        most_bytes = int(settings.api_max_batch_bytes if is_file else settings.api_max_body_bytes)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length")
        if length is not None and not (length.isdigit() and int(length) <= most_bytes):
            await _refusal(_too_long(most_bytes))(scope, receive, send)
            return
        if length not in {None, b"0"} or b"transfer-encoding" in headers:
            receive = _Bounded(receive, most_bytes)
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-type"] + [JSON]
        began = False

        async def noticed(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        except BodyRefused as error:  # a gate further in has read it
            if began:
                raise
            await _refusal(error)(scope, receive, send)


class BodyRefused(HTTPException):
    """A body that is not read to its end."""


def _too_long(most_bytes: int) -> BodyRefused:
    return BodyRefused(413, f"The body is longer than {most_bytes:,} bytes.")


def _refusal(error: BodyRefused) -> JSONResponse:
    return JSONResponse({"detail": error.detail}, error.status_code)


class _Bounded:
    """Receives until the end of the body, and no longer than that may take; afterwards for ever."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._came_bytes = 0
        self._began_s = get_running_loop().time()
        self._more = True

    async def __call__(self) -> Message:
        """As ASGI calls it. Raises BodyRefused."""
        if not self._more:
            return await self._receive()
        until = self._began_s + PATIENCE_S + self._came_bytes / SLOWEST_BYTES_S
        try:
            async with asyncio.timeout_at(until):
                message = await self._receive()
        except TimeoutError:
            raise BodyRefused(408, "The body came too slowly.") from None
        self._came_bytes += len(message.get("body", b""))
        if self._came_bytes > self._most_bytes:
            raise _too_long(self._most_bytes)
        self._more = message.get("more_body", False)
        return message
