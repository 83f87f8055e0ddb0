"""A program that cannot run says why in one sentence, before it starts."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"GAELP_OLLAMA_NODES": "http://a,ftp://b"}, "GAELP_OLLAMA_NODES"),
        ({"GAELP_BROKER_URL": "redis://127.0.0.1:1/0"}, "127.0.0.1:1"),
        ({"GAELP_NUM_PARALLEL": "none"}, "GAELP_NUM_PARALLEL"),
    ],
)
def test_a_worker_that_cannot_run_says_why_and_exits_with_one(variables, words):
    environment = {"GAELP_BROKER_URL": "redis://127.0.0.1:1/0", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", "worker"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
