"""Each request has an id, which its answer and the lines of the log tell, and a line of its own."""

import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from random import getrandbits
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gaelp_tasks.models.caller import Caller

__all__ = ["CALLER", "Requests", "told"]

logger = logging.getLogger(__name__)

CALLER = "gaelp.caller"  #: in the scope of a request that is signed in
GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,64}")  #: ids of callers that are taken as they are
LONGEST = 200  #: characters of a path in the log
CLIENT_WENT = 499  #: nobody was there to be answered

_id: ContextVar[str] = ContextVar("gaelp_request", default="")


def told() -> Mapping[str, Any]:
    """What a line of the log in JSON tells of the request that it belongs to."""
    found = _id.get()
    return {"request_id": found} if found else {}


class Requests:
    """Numbers and logs requests. No query is logged, for it may hold a ticket, nor any header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        name = _given(scope) or f"{getrandbits(128):032x}"
        _id.set(name)  # of this request's own task: what logs an error further out still knows it
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        began, status = perf_counter(), CLIENT_WENT

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            if logger.isEnabledFor(logging.INFO):
                _log(scope, status, perf_counter() - began, name)


def _given(scope: Scope) -> str:
    for header, value in scope["headers"]:
        if header == b"x-request-id":
            return value.decode() if GIVEN.fullmatch(value) else ""
    return ""


def _log(scope: Scope, status: int, took_s: float, name: str) -> None:
    caller: Caller | None = scope.get(CALLER)
    path = (scope.get("raw_path") or b"").decode("latin-1")[:LONGEST]  # escaped as it came: one line
    facts = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "ms": round(took_s * 1000, 1),
        "user": caller.name if caller else "",
    }
    logger.info(
        "%(method)s %(path)s %(status)d %(ms).1f ms %(user)s [%(id)s]", facts | {"id": name}, extra=facts
    )
