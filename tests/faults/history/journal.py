"""Who started what, when: one line per start, appended by the very process that runs it.

A file, and not the Redis that is being tested: one write to an open file takes microseconds, cannot block or
fail with Redis, and what was written stays when the writer is killed.
"""

import json
import os
from pathlib import Path
from time import monotonic  # one clock for all processes of the machine

from faults.history.record import Start


class Journal:
    """The writing end; any number of processes and threads share a file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def started(self, task_id: str, run: str, worker: str) -> None:
        """Note a start."""
        os.write(self._file, (json.dumps([task_id, run, worker, monotonic()]) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


class Reader:
    """The reading end; each `news` continues where the one before ended."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""

    def news(self) -> list[Start]:
        """The starts since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [Start(*json.loads(line)) for line in lines]

    def close(self) -> None:
        self._file.close()
