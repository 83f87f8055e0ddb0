"""A scripted node, and clients that speak to it over real sockets."""

from contextlib import AsyncExitStack

import pytest

from gaelp_tasks.clients import Limits, LocalOllamaClient
from support.scripted_server import CHAT_MODEL, ScriptedServer


@pytest.fixture
async def server():
    async with ScriptedServer() as running:
        yield running


@pytest.fixture
async def client(server):
    async with LocalOllamaClient(CHAT_MODEL, server.url) as made:
        yield made


@pytest.fixture
async def impatient(server):
    """Make a client with one short limit; the others stay generous, whatever the machine is busy with."""
    async with AsyncExitStack() as stack:

        async def make(**limits):
            client = LocalOllamaClient(CHAT_MODEL, server.url, limits=Limits(**limits))
            return await stack.enter_async_context(client)

        yield make
