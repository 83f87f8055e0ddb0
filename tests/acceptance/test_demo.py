"""`make demo` as its user meets it: the real small model, from the first line to the last process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.processes import running_in

pytestmark = [pytest.mark.smollm2, pytest.mark.slow, pytest.mark.timeout(400)]

CHECKOUT = Path(__file__).parents[2]
COLD_S = 360.0  # with every download; the contract's warm 60 s hold for an idle machine only
TIERS = ("interactive", "batch", "background")


def demo(root: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    settings = {"GAELP_OLLAMA_NODES": "http://127.0.0.1:9", **env}  # nobody: the model is to be our own
    return subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", "demo", "run"],
        cwd=root,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COLD_S,
        check=False,
    )


@pytest.fixture
def root(tmp_path):
    """A folder that shares nothing with the checkout but its downloads."""
    (CHECKOUT / ".cache").mkdir(exist_ok=True)
    (tmp_path / ".cache").symlink_to(CHECKOUT / ".cache")
    return tmp_path


def test_the_demo_works_on_real_input_in_all_three_tiers_and_leaves_nothing(root, record_property):
    home = root / "home"
    home.mkdir()
    began = time.monotonic()
    done = demo(root, HOME=str(home))
    record_property("seconds", time.monotonic() - began)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(TIERS)]
    assert {row[0] for row in rows} == set(TIERS)
    assert "smollm2:135m and all-minilm" in done.stdout
    for shown in ("slots", "memory", "cosine", "tokens/s", "cancelled", "The question was asked after"):
        assert shown in done.stdout
    assert "failed" not in done.stdout
    assert running_in(root) == {}
    assert list((root / ".run").iterdir()) == []
    assert list(home.iterdir()) == [], "nothing is written outside the checkout"
    assert {path.name for path in root.iterdir()} == {".cache", ".run", "home"}
