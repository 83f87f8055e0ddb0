"""WebSockets for tests: the API of this loop on a real port, and clients of it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gaelp_tasks.api.protocol import ImpatientSocket
from support.api import Api


@asynccontextmanager
async def served(api: Api) -> AsyncIterator[str]:
    """The address of its WebSockets, ws://127.0.0.1:port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            api.made, lifespan="off", log_level="error", ws=ImpatientSocket, ws_per_message_deflate=False
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  pytest keeps its own
        running = asyncio.create_task(server._serve([listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def watcher(url: str, **first: str) -> AsyncIterator[ClientConnection]:
    """One who watches; `first` is the first message."""
    async with connect(url, proxy=None) as made:
        if first:
            await made.send(json.dumps(first))
        yield made


async def heard(client: ClientConnection) -> Any:
    """The next event."""
    async with asyncio.timeout(10):
        return json.loads(await client.recv())


async def closed(client: ClientConnection) -> tuple[int, str]:
    """Code and reason of the end; what comes before is passed over."""
    async with asyncio.timeout(10):
        try:
            while True:
                await client.recv()
        except ConnectionClosed as end:
            told = end.rcvd
    assert told is not None
    return told.code, told.reason
