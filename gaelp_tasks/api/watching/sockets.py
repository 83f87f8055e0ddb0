"""The WebSockets: who signs in is shown what is known now, then what happens, until either side ends it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from time import monotonic, time
from typing import Annotated, NamedTuple

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from gaelp_tasks.api.refusals import answer
from gaelp_tasks.api.state import State, here
from gaelp_tasks.api.watching.closing import Close, code_of, reason_of
from gaelp_tasks.api.watching.hub import notice
from gaelp_tasks.api.watching.mailbox import Mailbox, Taken
from gaelp_tasks.api.watching.sign_in import SignedIn, chosen, sign_in
from gaelp_tasks.errors import GaelpError, NotAllowed, NotFound, QueueFull
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.watching import agent_now

__all__ = ["router"]

HEARTBEAT_S = 15.0  #: something is sent at least so often
CHECK_S = 30.0  #: who watches is asked again whether it still may
SEND_S = 20.0  #: for one message; a client that reads slower than that is sent away
CHATTER = 100  #: messages that a client may send after its first; they are not read
LARGEST_ID = 2**63 - 1

router = APIRouter()

Look = Callable[[Caller], Awaitable[str]]  #: what is known now, as JSON; raises what refuses it


class Noise(Exception):
    """A client talks that was to listen."""


class Feed(NamedTuple):
    """What a socket shows: what is known now, and then what comes."""

    look: Look
    mailbox: Mailbox


@router.websocket("/ws/system")
async def watch_system(socket: WebSocket, at: Annotated[State, here]) -> None:
    """Queues and nodes every two seconds, for operators."""
    await _served(socket, at, partial(_system, at))


@router.websocket("/ws/{agent_id}")
async def watch_agent(socket: WebSocket, agent_id: str, at: Annotated[State, here]) -> None:
    """One agent: metrics, states, jobs, budgets."""
    await _served(socket, at, partial(_agent, at, agent_id))


@asynccontextmanager
async def _system(at: State, _: Caller) -> AsyncIterator[Feed]:
    async def look(caller: Caller) -> str:
        if not caller.role.covers(Role.OPERATOR):
            raise NotAllowed(f"This needs the role {Role.OPERATOR}, and {caller.name} has {caller.role}.")
        return await at.watchers.cluster.look("snapshot")

    async with at.watchers.cluster.watching() as mailbox:
        yield Feed(look, mailbox)


@asynccontextmanager
async def _agent(at: State, given: str, caller: Caller) -> AsyncIterator[Feed]:
    unknown = NotFound("There is no such agent.")
    agent_id = int(given) if given.isascii() and given.isdigit() and len(given) < len(str(LARGEST_ID)) else 0
    if not agent_id:
        raise unknown

    async def look(caller: Caller) -> str:
        found = await agent_now(at.db, caller.scope, agent_id)
        return json.dumps({"event": "snapshot", "agent_id": agent_id, "at": time(), **found})

    await look(caller)  # nobody listens for an agent that is none, or another tenant's
    async with at.watchers.hub.watching(agent_id) as mailbox:
        yield Feed(look, mailbox)


async def _served(
    socket: WebSocket, at: State, feed: Callable[[Caller], AbstractAsyncContextManager[Feed]]
) -> None:
    """The life of one socket; whatever ends it, its client is told why where it can be."""
    places = at.watchers.places
    try:
        with places.stranger():
            await socket.accept(subprotocol=chosen(socket))
            signed = await sign_in(socket, at)
        with places.known(signed.caller):
            async with feed(signed.caller) as shown:
                await _show(socket, signed, shown)
    except GaelpError as error:
        await _refuse(socket, error)
    except Noise:
        await _close(socket, Close.NOISY, "You are here to listen.")
    except TimeoutError:
        await _close(socket, Close.SLOW, "You read slower than it happens.")
    except WebSocketDisconnect:
        pass


async def _show(socket: WebSocket, signed: SignedIn, feed: Feed) -> None:
    """Send until the client has gone. Raises what refuses it meanwhile, TimeoutError, Noise."""
    reading = asyncio.create_task(_not_read(socket))
    reading.add_done_callback(lambda _: feed.mailbox.close())
    try:
        await _send(socket, await feed.look(signed.caller))
        checked_at = monotonic()
        while not (taken := await _next(feed.mailbox)).over:
            if taken.again or monotonic() - checked_at > CHECK_S:
                now, checked_at = await feed.look(await signed.again()), monotonic()
                taken = taken._replace(texts=(*taken.texts, now)) if taken.again else taken
            for text in _texts(taken):
                await _send(socket, text)
        await reading
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError, WebSocketDisconnect, Noise):
            await reading


async def _next(mailbox: Mailbox) -> Taken:
    """What comes next; a heartbeat where nothing does."""
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            return await mailbox.take()
    except TimeoutError:
        return Taken(0, (notice("heartbeat"),), again=False, over=False)


def _texts(taken: Taken) -> tuple[str, ...]:
    return (notice("missed", count=taken.missed), *taken.texts) if taken.missed else taken.texts


async def _send(socket: WebSocket, text: str) -> None:
    async with asyncio.timeout(SEND_S):
        await socket.send_text(text)


async def _not_read(socket: WebSocket) -> None:
    """Take what a client sends, until it goes. Raises WebSocketDisconnect, Noise."""
    for _ in range(CHATTER):
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
    raise Noise


async def _refuse(socket: WebSocket, error: GaelpError) -> None:
    if isinstance(error, QueueFull) and socket.application_state.name == "CONNECTING":
        await socket.send_denial_response(answer(error))
    else:
        await _close(socket, code_of(error), reason_of(error))


async def _close(socket: WebSocket, code: Close, reason: str) -> None:
    """Say why; a client that does not take even that is left to the server."""
    with suppress(TimeoutError, RuntimeError, WebSocketDisconnect):
        async with asyncio.timeout(1.0):
            await socket.close(code, reason)
