"""docs/nodes.md says what is so: every block on the page is run."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from support.scripted_server import ScriptedServer
from support.snippets import run, snippets

BLOCKS = snippets(Path(__file__).parents[2] / "docs" / "nodes.md")
ANNOUNCED = [block for block in BLOCKS if "live_nodes" in block.code]


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block not in ANNOUNCED], ids=lambda block: block.name
)
async def test_a_block_of_the_page_runs(block, tmp_path):
    async with ScriptedServer() as first, ScriptedServer() as second:
        code = block.code.replace("http://gpu-1:11434", first.url).replace("http://gpu-2:11434", second.url)
        here = dataclasses.replace(block, code=code)
        nodes = {"GAELP_OLLAMA_NODES": f"{first.url},{second.url}"}
        assert await asyncio.to_thread(lambda: run(here, tmp_path, **nodes))
        assert first.requests or second.requests


@pytest.mark.redis
@pytest.mark.engine
@pytest.mark.parametrize("block", ANNOUNCED, ids=lambda block: block.name)
def test_a_pool_of_announced_nodes_works(block, broker, worker, tmp_path):
    assert run(block, tmp_path, GAELP_BROKER_URL=broker.url).startswith("[")
