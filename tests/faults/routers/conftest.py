"""Three nodes behind every router, and a client of theirs.

SOLLOL is among the routers where it is installed: `make sollol`.
"""

from contextlib import AsyncExitStack
from importlib.util import find_spec

import pytest

from gaelp_tasks.clients import DistributedOllamaClient
from gaelp_tasks.clients.routers import router_named
from support.faulty_node import FaultyNode
from support.node_faults import LIMITS
from support.scripted_server import CHAT_MODEL, EMBED_MODEL

ROUTERS = ["least-loaded", *(["sollol"] if find_spec("sollol") else [])]


@pytest.fixture(params=ROUTERS)
def routing(request):
    """A router by its name, over these nodes."""

    def make(nodes, **given):
        return router_named(request.param, [node.url for node in nodes], **given)

    return make


@pytest.fixture
async def started():
    """Start nodes; all end with the test."""
    async with AsyncExitStack() as stack:

        async def start(number):
            return [await stack.enter_async_context(FaultyNode()) for _ in range(number)]

        yield start


@pytest.fixture
async def nodes(started):
    return await started(3)


@pytest.fixture
async def client(nodes, routing):
    router = routing(nodes, slots=4)
    async with DistributedOllamaClient(CHAT_MODEL, router, EMBED_MODEL, limits=LIMITS) as made:
        yield made
