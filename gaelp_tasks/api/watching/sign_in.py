"""How a WebSocket says who it is: by a header, a subprotocol, a ticket, its first message; by no address."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from time import time
from typing import Any, NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect

from gaelp_tasks.api.access import address_of, recognised
from gaelp_tasks.api.state import State
from gaelp_tasks.connections import worded
from gaelp_tasks.errors import NotSignedIn
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.services import tickets

__all__ = ["FIRST_MESSAGE_S", "SUBPROTOCOL", "SignedIn", "chosen", "sign_in"]

SUBPROTOCOL = "gaelp"  #: asked for beside the one that carries a token, and the one that is chosen
FIRST_MESSAGE_S = 5.0  #: for the first message to come
LONGEST_MESSAGE = 8192  #: characters of the first message
IN_ADDRESS = "No token in an address: logs and proxies keep it. Send it as the first message."
HOW = 'Say who you are within 5 s: {"token": "..."} or {"ticket": "..."}.'


class SignedIn(NamedTuple):
    """Who watches, and how to ask again whether that still holds."""

    caller: Caller
    again: Callable[[], Awaitable[Caller]]  #: raises NotSignedIn


def chosen(socket: WebSocket) -> str | None:
    """The subprotocol to answer with; never the one with the token in it."""
    return SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None


async def sign_in(socket: WebSocket, at: State) -> SignedIn:
    """Who that is; waits for its first message where nothing else says so.

    Raises NotSignedIn, QueueFull where its address has failed too often.
    """
    address = address_of(socket.scope)
    query = dict(socket.query_params)
    ticket = query.pop("ticket", "")
    if query:
        raise NotSignedIn(IN_ADDRESS)
    if ticket:
        return await _by(at, address, "ticket", ticket)
    if found := _in_headers(socket):
        return await _by(at, address, *found)
    return await _by(at, address, *await _first_message(socket))


def _in_headers(socket: WebSocket) -> tuple[str, str] | None:
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return "token", token.strip()
    for word in socket.scope["subprotocols"]:
        kind, _, secret = word.partition(".")
        if kind in {"bearer", "ticket"} and secret:
            return "token" if kind == "bearer" else "ticket", secret
    return None


async def _first_message(socket: WebSocket) -> tuple[str, str]:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            message = await socket.receive()
    except TimeoutError:
        raise NotSignedIn(HOW) from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text = message.get("text") or ""
    try:
        told: Any = json.loads(text) if len(text) <= LONGEST_MESSAGE else None
        [(kind, secret)] = told.items()
    except (ValueError, AttributeError, RecursionError):
        raise NotSignedIn(HOW) from None
    if kind not in {"token", "ticket"} or not isinstance(secret, str):
        raise NotSignedIn(HOW)
    return kind, secret


async def _by(at: State, address: str, kind: str, secret: str) -> SignedIn:
    if kind == "token":
        caller = await recognised(at, secret, address)
        return SignedIn(caller, lambda: at.identity.caller(secret))
    try:
        with worded(at.settings):
            admission = await tickets.redeem(at.redis, Keys(at.settings.namespace), secret)
    except NotSignedIn:
        at.failures.note(address)
        raise

    async def again() -> Caller:
        if time() > admission.until:
            raise NotSignedIn("The time of this ticket is over: take another one.")
        return await at.identity.still(admission.caller)

    return SignedIn(admission.caller, again)
