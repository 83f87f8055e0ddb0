"""The task that the harness runs beside invocations; `plain` and `noops` register it on an app each."""

import os
import time
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Task

from faults.history.journal import Journal

TESTS = Path(__file__).parents[2]
#: for the environment of what imports the harness; the caller's own path stays
PATH = {"PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))}
PROBE = "history.probe"
JOURNAL, WORKER = "HISTORY_JOURNAL", "HISTORY_WORKER"  #: in a worker's environment


@cache
def journal() -> Journal:
    """This process's, also after a fork."""
    return Journal(Path(os.environ[JOURNAL]))


def probe(self: Task, *_: Any, seconds: float = 0.0) -> str:
    """Note the start, take `seconds`, and return what no other run returns.

    As the second of a chain it is given what the first returned, and ignores it.
    """
    run = uuid4().hex
    journal().started(self.request.id, run, os.environ[WORKER])
    if seconds:
        time.sleep(seconds)
    return run
