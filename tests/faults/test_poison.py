"""A message that kills every worker that runs it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app, dead_letters, invoke_agent
from gaelp_tasks.cli.app import cli
from gaelp_tasks.errors import DeadLettered

pytestmark = [pytest.mark.redis, pytest.mark.engine]

TESTS = str(Path(__file__).parents[1])


def test_it_costs_five_workers_then_it_is_a_dead_letter_and_its_caller_is_told(start_worker, node):
    settings = {
        "GAELP_OLLAMA_NODES": node,
        "GAELP_AGENTS": '{"killer": "support.poison:Killer"}',
        "GAELP_LEASE_TTL_S": "2",
        "GAELP_POISON_DEATHS": "5",
        "PYTHONPATH": os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH")))),
    }
    with ThreadPoolExecutor(3) as pool:
        workers = list(pool.map(lambda name: start_worker(name=name, **settings), "abcdef"))
    poison = app.send_task("gaelp.invoke_agent", ["Die"], {"agent": "killer"}, queue="interactive")
    with pytest.raises(DeadLettered, match="it killed the workers that ran it"):
        poison.get(timeout=90)
    assert sorted(worker.process.poll() is None for worker in workers) == [False] * 5 + [True]
    told = CliRunner().invoke(cli, ["attach", "--json", poison.id])
    *starts, end = map(json.loads, told.stdout.splitlines())
    assert [one["event"] for one in starts] == ["start"] * 5
    assert (end["event"], end["facts"]["error"]) == ("end", "DeadLettered")
    [letter] = dead_letters.listed(app, most=9)
    assert (letter.task_id, letter.reason) == (poison.id, "poison")
    assert invoke_agent.delay("Hi", options={"num_predict": 1}).get(timeout=30)["stop_reason"] == "length"
