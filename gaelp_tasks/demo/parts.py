"""One supervised program: how it is started, when it is ready, how it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gaelp_tasks.demo import tether
from gaelp_tasks.errors import GaelpError

__all__ = ["Child", "Part", "PartFailed"]

POLL_S = 0.02

T = TypeVar("T")


class PartFailed(GaelpError):
    """A part of the embedded system cannot be had, did not start, or ended by itself."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A program to run: what, where, and how long its start and its end may take."""

    name: str
    command: tuple[str, ...]
    log: Path  #: its stdout and stderr, appended
    cwd: Path | None = None  #: made when missing; None: ours
    env: Mapping[str, str] = field(default_factory=dict)  #: added to ours
    start_within_s: float = 60.0
    stop_within_s: float = 10.0  #: from SIGTERM; SIGKILL follows


class Child:
    """A started part: deaf to the terminal's Ctrl-C, and on Linux gone when the thread that started it is."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._stopped = False
        try:
            for folder in (part.log.parent, part.cwd):
                if folder:
                    folder.mkdir(parents=True, exist_ok=True)
            with part.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(  # noqa: S603  programs that our own code names
                    [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *part.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=part.cwd,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **part.env},
                    start_new_session=True,
                )
        except OSError as error:
            raise PartFailed(f"The {part.name} could not be started: {error}.") from error

    @property
    def pid(self) -> int:
        """Of the program itself, which is also the id of its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def output(self) -> str:
        """What it has written to its log since this start."""
        with self.part.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_for(self, probe: Callable[["Child"], T | None]) -> T:
        """Ask until the probe answers, and return its answer.

        Raises PartFailed, with the last line of the log, when the program fails or its time is over first.
        """
        give_up_at = time.monotonic() + self.part.start_within_s
        while self.alive:
            if (answer := probe(self)) is not None:
                return answer
            if time.monotonic() > give_up_at:
                raise PartFailed(self._sentence(f"was not ready within {self.part.start_within_s:g} s"))
            time.sleep(POLL_S)
        raise PartFailed(self._sentence("ended while it started"))

    def death(self) -> PartFailed:
        """The error to raise when it ended by itself."""
        return PartFailed(self._sentence("ended by itself"))

    def stop(self, hurry: threading.Event | None = None) -> None:
        """SIGTERM, a bounded wait, SIGKILL for it and for whatever it left behind. Harmless when repeated.

        `hurry` cuts the wait short once it is set.
        """
        if self._stopped:
            return
        self._stopped = True
        self._process.terminate()
        give_up_at = time.monotonic() + self.part.stop_within_s
        while self.alive and time.monotonic() < give_up_at and not (hurry and hurry.is_set()):
            time.sleep(POLL_S)
        # A group keeps its number while anybody is in it, so this reaches its stragglers or nobody.
        with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _sentence(self, what: str) -> str:
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        well = self._process.poll() == 0  # the last words of a program that simply ended are no reason
        reason = f": {lines[-1].rstrip('.')}" if lines and not well else ""
        return f"The {self.part.name} {what}{reason}. Its log is {self.part.log}."
