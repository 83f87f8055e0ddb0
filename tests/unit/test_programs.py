"""A program that cannot run says why in one sentence, before it starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from gaelp_tasks.cli.__main__ import main


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


def test_a_file_that_cannot_be_had_is_named(monkeypatch, capsys):
    def verb(**_):
        Path("/nowhere/results.jsonl").write_text("")

    monkeypatch.setattr("gaelp_tasks.cli.app.cli", verb)
    monkeypatch.setenv("GAELP_BROKER_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "gaelp: /nowhere/results.jsonl: No such file or directory.\n"
