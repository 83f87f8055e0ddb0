"""`gaelp demo scripted`: a worker takes it for an Ollama, and every answer tells its question."""

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from gaelp_tasks import embed, invoke_agent
from gaelp_tasks.cli.server import Server
from gaelp_tasks.clients import LocalOllamaClient
from gaelp_tasks.demo.model_server.scripted import words
from gaelp_tasks.settings import Settings


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-m", "gaelp_tasks.cli", "demo", "scripted", "--num-parallel", "2"]
    with subprocess.Popen([*command, "--token-s", "0.001"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0


def test_it_lists_loads_and_unloads_its_models(server):
    asked = Server(server, Settings())
    assert {found.name for found in asked.models()} == {"script:latest", "script-embed:latest"}
    assert {found.capabilities for found in asked.models()} == {("completion",), ("embedding",)}
    assert asked.version()["num_parallel"] == 2


async def test_a_client_reads_the_words_of_its_question(server):
    async with LocalOllamaClient("script", server) as client:
        said = [chunk async for chunk in client.chat([{"role": "user", "content": "one two"}])]
        assert "".join(chunk.content for chunk in said).strip() == "You said: one two"
        assert said[-1].usage.completion_tokens == 4
        ways = [client.generate_embedding(text) for text in ("a", "a", "b")]
        first, again, other = await asyncio.gather(*ways)
    assert first == again != other


@pytest.mark.parametrize(
    ("most", "begun", "said", "reason"),
    [
        (None, "", "You said: a b ", "stop"),
        (6, "", "You said: a b You said: ", "length"),
        (2, "", "You said: ", "length"),
        (3, "You said: ", "a b You ", "length"),
        (-1, "You said: a ", "b ", "stop"),
    ],
)
def test_an_answer_goes_on_where_it_was_cut(most, begun, said, reason):
    found, why = words("a b", most, begun)
    assert ("".join(found), why) == (said, reason)


@pytest.mark.redis
def test_a_worker_takes_it_for_an_ollama(server, start_worker):
    start_worker(GAELP_OLLAMA_NODES=server, GAELP_NUM_PARALLEL="2")
    tiers = ("interactive", "batch", "background")
    handles = {
        tier: invoke_agent.apply_async((f"{tier} 1",), {"tier": tier, "options": {"num_predict": 7}})
        for tier in tiers
    }
    for tier, handle in handles.items():
        answer = handle.get(timeout=40)
        assert answer["text"].split() == "".join(words(f"{tier} 1", 7)[0]).split()
        assert answer["tier"] == tier
    assert len(embed.delay(["a", "b"]).get(timeout=40)["embeddings"]) == 2
