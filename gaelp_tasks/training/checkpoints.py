"""Checkpoints: whole files that a job has put into its folder, by their last number the newest.

A file counts as whole when it is there: a job writes it under a name that begins with a dot or ends in .tmp,
and renames it.
"""

import heapq
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from gaelp_tasks.models.training import Checkpoint

__all__ = ["found", "newest", "step_of"]

UNFINISHED = (".tmp", ".part", ".partial")
MOST = 1000  #: files that are told of
LONGEST = 500  #: characters of a name
LARGEST = 2**62


def step_of(name: str) -> int | None:
    """The last number in a file's name without its ending: 120 of `model-v2-step-120.json`."""
    numbers = re.findall(r"\d+", Path(name).stem, re.ASCII)
    return min(int(numbers[-1][:18]), LARGEST) if numbers else None


def found(folder: Path) -> list[Checkpoint]:
    """The whole files there, the oldest first, of many the newest; [] where the folder cannot be read.

    Blocks, for seconds where a job has left very many.
    """
    try:
        return heapq.nlargest(MOST, _whole(folder), key=_age)[::-1]
    except OSError:
        return []


def _whole(folder: Path) -> Iterator[Checkpoint]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name.endswith(UNFINISHED) or len(name) > LONGEST:
                continue
            if not name.isprintable() or not entry.is_file(follow_symlinks=False):
                continue
            told = entry.stat(follow_symlinks=False)
            at = datetime.fromtimestamp(told.st_mtime, UTC)
            yield Checkpoint(name, told.st_size, step_of(name), at)


def newest(there: Iterable[Checkpoint], recorded: Iterable[Checkpoint]) -> Checkpoint | None:
    """From which to go on: the newest that is not empty and, where its size was noted, has it still.

    A file that changed since it was noted is not whole, or not what was meant.
    """
    sizes = {one.path: one.size_bytes for one in recorded}
    whole = [one for one in there if one.size_bytes and sizes.get(one.path, one.size_bytes) == one.size_bytes]
    return max(whole, key=_age, default=None)


def _age(one: Checkpoint) -> tuple[int, datetime, str]:
    return (-1 if one.step is None else one.step, one.at, one.path)
