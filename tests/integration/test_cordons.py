"""`gaelp nodes cordon|drain|resume` on a real worker."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.overview import describe
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine]

ENDLESS = {"num_predict": 1_000_000}
SHORT = {"num_predict": 5, "seed": 5}


def gaelp(*words: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"GAELP_BROKER_URL": app.settings.broker_url}
    command = [sys.executable, "-m", "gaelp_tasks.cli", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def closed(worker: Any) -> set[str]:
    return {node.closed for node in worker.announced().values()}


def test_a_cordoned_worker_takes_nothing_new_until_it_is_resumed(start_worker, broker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="2")
    running = invoke_agent.delay("Never stop", options=ENDLESS)
    reader = running.stream(timeout=20)
    next(reader)
    done = gaelp("nodes", "cordon", worker.name, "--json")
    assert json.loads(done.stdout) == {"worker": worker.name, "state": "cordoned"}
    eventually(lambda: closed(worker) == {"cordoned"}, within_s=5)
    waiting = invoke_agent.delay("Hi", options=SHORT)
    for _ in range(3):
        next(reader)  # what runs goes on
    app.control.pool_grow(1, reply=True, limit=1, timeout=30)
    broker.freeze()
    broker.thaw()
    assert describe(app, waiting.id).why == (
        f"Nobody takes new work: {worker.name} (cordoned). `gaelp nodes resume WORKER` ends a cordon."
    )
    listed = gaelp("nodes", "list")
    assert "cordoned" in listed.stdout
    running.cancel()
    running.get(timeout=20)

    worker.send(signal.SIGTERM)
    assert worker.wait(within_s=20) == 0
    assert json.loads(gaelp("nodes", "list", "--json").stdout)["cordoned_and_absent"] == [worker.name]
    again = start_worker(GAELP_OLLAMA_NODES=node)
    assert closed(again) == {"cordoned"}, "a restart does not end it"
    assert waiting.state == "PENDING"
    assert gaelp("nodes", "resume", worker.name).stdout == f"{worker.name} takes work again.\n"
    assert waiting.get(timeout=20)["attempts"] == 1


def test_a_drain_waits_then_gives_back_what_still_runs(start_worker, node):
    first = start_worker(GAELP_OLLAMA_NODES=node, name="first")
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    next(handle.stream(timeout=20))
    done = gaelp("nodes", "drain", first.name, "--grace", "0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{first.name}: 1 running",
        f"{first.name}: 0 running",
        f"{first.name}: nothing runs there, and nothing new is taken.",
    ]
    assert app.redis.get(app.keys.cordon(first.name)) == "cordon"
    second = start_worker(GAELP_OLLAMA_NODES=node, name="second")
    eventually(lambda: second.runs(handle.id), within_s=60, what="it goes on elsewhere")
    assert not first.runs(handle.id)
    handle.cancel()
    assert handle.get(timeout=20)["attempts"] == 1


def test_an_unknown_worker_is_one_sentence_with_the_known_ones(start_worker, node):
    worker = start_worker(GAELP_OLLAMA_NODES=node)
    done = gaelp("nodes", "cordon", "nobody@nowhere")
    assert done.returncode == 2
    told = " ".join(done.stderr.replace("│", " ").split())
    assert f"there is no worker 'nobody@nowhere'; there are: {worker.name}." in told
    assert gaelp("nodes", "cordon", node).returncode == 0, "its only node's address is as good"
    eventually(lambda: closed(worker) == {"cordoned"}, within_s=5)
