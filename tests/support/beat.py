"""A real beat process for a test."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.eventually import eventually

CELERY = ("celery", "-A", "gaelp_tasks", "beat", "--loglevel=INFO")


class BeatProcess:
    """`with BeatProcess(folder, GAELP_...="...") as beat:`; ended by pid whatever happens.

    `program` starts it, in the folder, where it finds modules of the test.
    """

    def __init__(
        self, folder: Path, *, name: str = "beat", program: Sequence[str] = CELERY, **settings: str
    ) -> None:
        self._folder = folder
        self._program = program
        self._settings = settings
        self.log_file = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it ticks."""
        env = os.environ | {
            "GAELP_DATABASE_URL": f"sqlite:///{self._folder / 'gaelp.db'}",
            "PYTHONPATH": os.pathsep.join([str(self._folder), *sys.path]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **self._settings,
        }
        told = self.log().count("beat: Starting") if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._program],
                env=env,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(lambda: self._begun(told), within_s=40, what="beat is up")

    def _begun(self, told: int) -> bool:
        assert self.process.poll() is None, f"beat ended:\n{self.log()}"
        return self.log().count("beat: Starting") > told

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_file.read_text()

    def kill(self) -> None:
        """As a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """In good order; gives its exit code."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(timeout=20)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
