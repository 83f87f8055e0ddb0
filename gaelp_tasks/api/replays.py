"""The header `Idempotency-Key`: a POST that is sent again under its key is done once, and answered alike."""

import asyncio
import hashlib
import json
import logging
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gaelp_tasks.api import state
from gaelp_tasks.api.bodies import BodyRefused
from gaelp_tasks.api.refusals import OWN_FAULT, answer
from gaelp_tasks.api.requests import CALLER
from gaelp_tasks.api.state import State
from gaelp_tasks.db.idempotency import LONGEST_KEY, Begun, IdempotentRequests, Turn, forget
from gaelp_tasks.errors import Conflict, GaelpError, InvalidInvocation
from gaelp_tasks.failpoints import reach

__all__ = ["Replays", "forget_old"]

logger = logging.getLogger(__name__)

HEADER = b"idempotency-key"
OWN_WAY = frozenset({"/api/v1/invocations", "/api/v1/batches"})  #: one keeps keys itself, one streams bodies
MOST_BYTES = 1024**2  #: of an answer that is kept; a longer one is given once
NOTHING_DONE = frozenset({400, 401, 402, 403, 404, 405, 408, 409, 413, 422, 429, 503})  #: may be tried again
OWN = frozenset({"/api/v1/invocations"})  #: keeps its keys itself, with what it accepts
TURN_S = 15.0  #: a request whose replica has died is free for another one after this
RENEW_S = 5.0  #: between two words of one that lives
FORGET_S = 600.0  #: between two looks for old keys
SHOWN, CREATED = 200, 201
KEPT = frozenset({b"content-type", b"location", b"etag"})  #: headers of an answer
OTHER = "This Idempotency-Key stands for another request: take a new key for this one."
OPEN = "A request under this Idempotency-Key is not answered yet: send it again in a few seconds."
LOST = (
    "A request under this Idempotency-Key was done, but its answer was lost: look at what it has done before "
    "you send it under another key."
)
GIVEN = "The request under this Idempotency-Key was done, and its answer is given only once."


class Replays:
    """Does what a key stands for once. Answers that are secret, long or streamed are not kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        key = _key(scope)
        if key is None:
            await self._app(scope, receive, send)
            return
        try:
            if not (0 < len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
                raise InvalidInvocation(
                    f"Idempotency-Key: take 1 to {LONGEST_KEY} printable ASCII characters."
                )
            at = state.of(scope["app"])
            body = await _whole(receive, int(at.settings.api_max_body_bytes))
            if body is None:
                return  # whoever asked has gone
            kept = IdempotentRequests(at.db, scope[CALLER])
            digest = _digest(scope, body)
            now = datetime.now(UTC)
            begun = await kept.begin(key, digest, now, until=_until(now))
        except GaelpError as error:
            await answer(error)(scope, receive, send)
            return
        if isinstance(begun, Begun):
            await _again(begun, digest, scope, receive, send)
            return
        seen, body = (_look(scope, begun.made), b"") if begun.made else (scope, body)
        await self._once(_Once(kept, begun, send), body, seen, receive)

    async def _once(self, once: "_Once", body: bytes, scope: Scope, receive: Receive) -> None:
        sent = False
        reach("replay:begun")

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        renewing = asyncio.create_task(once.keep_turn())
        try:
            with once.doing():
                await self._app(scope, replay, once.send)
        except Exception:
            await once.fail()
            raise
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)


class _Once:
    """Holds an answer back until it is kept, if it is to be."""

    def __init__(self, kept: IdempotentRequests, turn: Turn, send: Send) -> None:
        self._kept = kept
        self._turn = turn
        self._send = send
        self._start: Message = {}
        self._body = bytearray()
        self._held = True  #: nothing was sent yet

    def doing(self) -> AbstractContextManager[None]:
        """While the route is at work."""
        return self._kept.doing(self._turn)

    async def keep_turn(self) -> None:
        """Renew the turn until it is over; one that cannot be renewed ends, and another request may begin."""
        going_on = True
        while going_on:
            await asyncio.sleep(RENEW_S)
            with suppress(GaelpError):
                going_on = await self._kept.renew(self._turn, _until(datetime.now(UTC)))

    async def send(self, message: Message) -> None:
        """As ASGI calls it."""
        if not self._held:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start = self._made(message) if self._turn.made else message
            if not self._may_be_kept():
                await self._keep(None)
                await self._let_go()
        else:
            self._body += message.get("body", b"")
            more = message.get("more_body", False)
            too_long = len(self._body) > MOST_BYTES
            if too_long or not more:
                await self._keep(None if too_long else bytes(self._body))
                await self._let_go()
                await self._send({"type": "http.response.body", "body": bytes(self._body), "more_body": more})

    async def fail(self) -> None:
        """The route has raised: what it has done is not known, so it is not done again."""
        if self._held and not self._turn.made:
            body = json.dumps({"detail": OWN_FAULT}).encode()
            await self._end(500, [["content-type", "application/json"]], body)

    def _made(self, message: Message) -> Message:
        """What one before has made is shown, in place of the answer that it was."""
        if message["status"] != SHOWN:
            return message
        headers = [*message["headers"], (b"idempotency-replayed", b"true")]
        return {**message, "status": CREATED, "headers": headers}

    def _may_be_kept(self) -> bool:
        headers = dict(self._start["headers"])
        secret = b"no-store" in headers.get(b"cache-control", b"")
        return not secret and not headers.get(b"content-type", b"").startswith(b"text/event-stream")

    async def _let_go(self) -> None:
        self._held = False
        await self._send(self._start)

    async def _keep(self, body: bytes | None) -> None:
        status: int = self._start["status"]
        if self._turn.made and status != CREATED:  # it could not be shown; it was made nevertheless
            return
        if status in NOTHING_DONE:
            try:
                await self._kept.drop(self._turn)
            except GaelpError as error:
                logger.warning("An Idempotency-Key stays taken: %s", error)
            return
        headers = [
            [name.decode(), value.decode("latin-1")] for name, value in self._start["headers"] if name in KEPT
        ]
        await self._end(status, headers, body)

    async def _end(self, status: int, headers: list[list[str]], body: bytes | None) -> None:
        reach("replay:done")
        try:
            await self._kept.end(self._turn, status, headers, body)
            reach("replay:kept")
        except GaelpError as error:  # it was done; who asks again under the key is told so, or shown it
            logger.warning("The answer under an Idempotency-Key is not kept: %s", error)


def _key(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST" or CALLER not in scope or scope["path"] in OWN:
        return None
    if scope["path"] in OWN_WAY:
        return None
    found = next((value for name, value in scope["headers"] if name == HEADER), None)
    return None if found is None else found.decode("latin-1")


async def _whole(receive: Receive, most_bytes: int) -> bytes | None:
    """None where whoever sends it has gone. Raises BodyRefused for a file that is too long to be compared."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > most_bytes:
            raise BodyRefused(413, f"With an Idempotency-Key a body has at most {most_bytes:,} bytes.")
        if not message.get("more_body", False):
            return bytes(body)


def _digest(scope: Scope, body: bytes) -> str:
    path: str = scope["path"]
    parts = scope["method"].encode(), path.encode("utf-8", "replace"), scope["query_string"], body
    made = hashlib.sha256()
    for part in parts:
        made.update(len(part).to_bytes(8, "big") + part)
    return made.hexdigest()


def _until(now: datetime) -> datetime:
    return now + timedelta(seconds=TURN_S)


def _look(scope: Scope, made: str) -> Scope:
    """The request that shows what another one has made, by the same caller."""
    path = f"/api/v1/{made}"
    headers = [(name, value) for name, value in scope["headers"] if not name.startswith(b"content-")]
    return {**scope, "method": "GET", "path": path, "raw_path": quote(path).encode(), "headers": headers}


async def _again(before: Begun, digest: str, scope: Scope, receive: Receive, send: Send) -> None:
    if before.digest != digest:
        await answer(Conflict(OTHER))(scope, receive, send)
    elif before.status is None:
        await answer(Conflict(LOST if before.is_left(datetime.now(UTC)) else OPEN))(scope, receive, send)
    elif before.body is None:
        await answer(Conflict(GIVEN))(scope, receive, send)
    else:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in before.headers]
        headers += [(b"content-length", str(len(before.body)).encode()), (b"idempotency-replayed", b"true")]
        await send({"type": "http.response.start", "status": before.status, "headers": headers})
        await send({"type": "http.response.body", "body": before.body})


async def forget_old(at: State) -> None:
    """Forget answers whose time is over, for ever."""
    while True:
        try:
            before: Any = datetime.now(UTC) - timedelta(seconds=at.settings.api_idempotency_keep_s)
            while await forget(at.db, before):
                pass
        except GaelpError as error:
            logger.warning("Old Idempotency-Keys are not forgotten: %s", error)
        await asyncio.sleep(FORGET_S)
