"""The Makefile: whose PYTHONPATH reaches what."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
TELLS = """#!/bin/sh
echo "$(basename "$0") $2 sees '$PYTHONPATH'" >&2
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose environment lacks only the last step, and whose programs tell what they see."""
    shutil.copy(MAKEFILE, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "gaelp"):
        (programs / name).write_text(TELLS)
        (programs / name).chmod(0o755)
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/build.txt", "requirements/dev.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    for name in (".made", ".locked"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(("word", "program_sees"), [("up", "/my own/agents"), ("demo", "")])
def test_the_callers_paths_reach_the_worker_of_make_up_and_nothing_else(checkout, word, program_sees):
    done = subprocess.run(
        ["make", word],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "/my own/agents"},
        capture_output=True,
        text=True,
        check=True,
    )
    verb = {"up": "up", "demo": "run"}[word]
    assert done.stderr.splitlines() == ["python pip sees ''", f"gaelp {verb} sees '{program_sees}'"]
