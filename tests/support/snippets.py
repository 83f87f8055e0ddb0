"""The python blocks of a page in docs/, so that what is shown is what is run.

A block whose first line is a comment with a file's name (`# my_agents.py`) is that file; every other one is a
program. A fence that says `python no-run` is left out, and the sentence before it should say why.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Snippet", "run", "snippets", "write_files"]

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w/]+\.py)\n")


@dataclass(frozen=True, slots=True)
class Snippet:
    """One block."""

    name: str  #: page and line, for the test's id
    code: str
    file: str  #: the file that it is; '' for a program


def snippets(page: Path) -> list[Snippet]:
    """The blocks of a page, in order."""
    text = page.read_text()
    found = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        named = FILE.match(block[1])
        found.append(Snippet(f"{page.name}:{line}", block[1], named[1] if named else ""))
    return found


def write_files(blocks: Sequence[Snippet], folder: Path) -> None:
    """Put the files among the blocks into a folder, which belongs on PYTHONPATH of whoever imports them."""
    for block in blocks:
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)


def run(block: Snippet, folder: Path, *, python: Path | None = None, within_s: float = 60, **env: str) -> str:
    """What a program prints, run in `folder` as a user would; a failure shows its traceback."""
    done = subprocess.run(
        [str(python or sys.executable), "-W", "error", "-c", block.code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert done.returncode == 0, f"{block.name}:\n{done.stderr}"
    return done.stdout
