"""`gaelp health worker` asks a real worker: it lives and announces its node, and is deaf all the same."""

import asyncio
import os
import subprocess
import sys

import pytest

from gaelp_tasks import app
from gaelp_tasks.cli import health
from gaelp_tasks.overview import live_nodes
from gaelp_workers.scripts import CLAIM
from support.eventually import eventually
from support.hole import Hole
from support.ports import free_port
from support.scripted_server import ScriptedServer

pytestmark = [pytest.mark.redis, pytest.mark.slow]


@pytest.fixture
async def node():
    async with ScriptedServer() as server:
        yield server


def asked(name, port, broker):
    """The exit code and the sentence of `gaelp health worker`."""
    done = subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", "health", "worker", "--name", name],
        env=os.environ | {"GAELP_METRICS_PORT": str(port), "GAELP_BROKER_URL": broker.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.strip()


async def test_a_worker_whose_claims_are_swallowed_is_unwell_though_it_announces_its_node(
    start_worker, node, broker, monkeypatch
):
    await asyncio.to_thread(story, start_worker, node.url, broker, monkeypatch)


def story(start_worker, node, broker, monkeypatch):
    """On a thread of its own: the node answers on the test's."""
    port = free_port()
    with Hole(broker.port) as hole:
        worker = start_worker(
            GAELP_OLLAMA_NODES=node,
            GAELP_BROKER_URL=f"redis://127.0.0.1:{hole.port}/0",
            GAELP_METRICS_PORT=str(port),
            GAELP_DEAF_AFTER_S="600",
        )
        assert asked(worker.name, port, broker) == (0, f"{worker.name} announces {node}.")
        monkeypatch.setattr(health, "DEAF_S", 1.0)

        def verdict():
            return health.of_worker(live_nodes(app), "test", "", health.page("127.0.0.1", port))

        assert verdict().well
        assert hole.hush(CLAIM.sha.encode()) == 1
        deaf = eventually(lambda: None if (now := verdict()).well else now, what="it is found to be deaf")
        assert "has heard no answer" in deaf.why
        assert worker.announced(), "and it announces its node all the while"
