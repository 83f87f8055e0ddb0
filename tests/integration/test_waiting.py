"""What people are told of why something waits, on a real worker beside a real model server."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.lifecycle import State
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.overview import describe, live_nodes
from gaelp_tasks.waiting import slots_of
from support.eventually import eventually
from support.model_server import ROOMY, ModelServer, slow_model

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

ENDLESS = {"num_predict": 100_000}
SHORT = {"num_predict": 3}
MODEL = "red:1b"


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    """A model server with one slow model."""
    folder = tmp_path_factory.mktemp("red")
    with ModelServer(folder, models={MODEL: slow_model(folder)}, num_ctx=ROOMY) as server:
        yield server


def gaelp(*words: str, **settings: str) -> str:
    """What the command prints."""
    env: Mapping[str, str] = os.environ | {"GAELP_BROKER_URL": app.settings.broker_url, **settings}
    done = subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", *words],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout


def test_who_waits_is_told_its_place_its_start_and_why(start_worker, red):
    worker = start_worker(GAELP_OLLAMA_NODES=red.url)
    invoke_agent.delay("Hi", model=MODEL, options=SHORT).get(timeout=60)
    blocker = invoke_agent.delay("Never stop", model=MODEL, tier="interactive", options=ENDLESS)
    eventually(lambda: worker.runs(blocker.id))
    batch, background = (
        invoke_agent.delay("I wait", model=MODEL, tier=tier, options=SHORT)
        for tier in ("batch", "background")
    )

    def told() -> dict[str, Any]:
        found = json.loads(gaelp("show", background.id, "--json"))
        expected = found["expected"] or {}
        return found if expected.get("busy") and expected.get("run_s") else {}

    found = eventually(told, within_s=30, what="its worker tells its slots and how long a run takes")
    assert found["state"] == "queued"
    assert found["place"] == {"queue": "background.red_1b", "position": 1}
    assert found["why"].startswith("1 ahead of it, 1 of them in higher tiers")
    expected = found["expected"]
    assert (expected["ahead"], expected["slots"], expected["busy"]) == (1, 1, 1)
    assert expected["start_in_s"] == pytest.approx(2 * expected["run_s"])
    words = gaelp("show", background.id)
    assert "expected start" in words
    assert "unknown" not in words
    blocker.cancel()
    for handle in (batch, background):
        handle.get(timeout=60)
    assert describe(app, background.id).state is State.DONE


def test_every_model_in_memory_is_a_row_of_top(start_worker, red):
    worker = start_worker(GAELP_OLLAMA_NODES=red.url)
    blocker = invoke_agent.delay("Never stop", model=MODEL, options=ENDLESS)
    eventually(lambda: worker.runs(blocker.id))

    def row() -> list[str]:
        lines = gaelp("top", "--once").splitlines()
        return next((line.split() for line in lines if line.startswith(MODEL) and "1/1" in line), [])

    assert eventually(row, within_s=30)[:4] == [MODEL, "■", "1/1", "loaded"]
    [announced] = live_nodes(app)
    assert getattr(slots_of(announced, MODEL), "busy", None) == 1
    blocker.cancel()


def test_who_waits_for_a_model_that_no_node_has_is_told_so_at_once(redis):
    memory = MemorySnapshot(total_bytes=2, free_bytes=1, source="test")
    other = NodeSnapshot(  # of a worker that has not come to it yet
        worker="w@h", pid=1, url="http://a:1", healthy=True, models=(MODEL,), slots=1, memory=memory,
        started_at=1.0, seen_at=1.0,
    )  # fmt: skip
    redis.set(app.keys.node("w@h", other.url), other.model_dump_json())
    missing = invoke_agent.delay("Hi", model="green:1b", options=SHORT)
    assert "No node has model green:1b: `gaelp models pull green:1b` fetches it." in " ".join(
        gaelp("show", missing.id).split()
    )
    assert "1 wait for green_1b, which no node has." in gaelp("top", "--once")


def test_an_unusual_safety_factor_is_warned_of_when_a_worker_starts_and_by_doctor(start_worker, red):
    settings = {
        "GAELP_OLLAMA_NODES": red.url,
        "GAELP_SAFETY_FACTOR": "1.1",
        "GAELP_DEFAULT_MODEL": MODEL,
        "GAELP_OS_RESERVE": "64MiB",
    }
    worker = start_worker(**settings)
    assert "The safety factor 1.1 is outside 1.5 to 2" in worker.log()
    eventually(lambda: live_nodes(app)[0].memory.total_bytes)
    found = {check["name"]: check for check in json.loads(gaelp("doctor", "--json", **settings))}
    assert found["safety factor"]["verdict"] == "warn"
    told = found[f"worker {worker.name} on {red.url}"]["finding"]
    assert told.endswith(f"({live_nodes(app)[0].memory.source})")
    room = found[f"room on {red.url}"]
    assert (room["verdict"], room["finding"].split()[0]) == ("ok", MODEL)
    settings["GAELP_OS_RESERVE"] = "100TiB"
    short = {check["name"]: check for check in json.loads(gaelp("doctor", "--json", **settings))}
    assert short[f"room on {red.url}"]["verdict"] == "warn"
