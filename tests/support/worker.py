"""A real worker process for a test."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.models.capacity import NodeSnapshot
from support.eventually import eventually

CELERY = ("celery", "-A", "gaelp_tasks", "worker", "--hostname")
GAELP = ("gaelp_tasks.cli", "worker", "--name")


class WorkerProcess:
    """`with WorkerProcess(folder, GAELP_...="...") as worker:`; ended by pid whatever happens.

    `at` is an app that reaches the same Redis, where that is not the session's own. `program` starts it, up
    to the option that gives its name, in the folder `cwd`.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        name: str = "worker",
        mingle: bool = False,
        at: GaelpApp = app,
        program: Sequence[str] = CELERY,
        cwd: Path | None = None,
        **settings: str,
    ) -> None:
        self._at = at
        self._program = program
        self._cwd = cwd
        self.name = f"{name}@test"
        self.log_file = folder / f"{name}.log"
        self._settings: Mapping[str, str] = settings
        self._arguments = arguments if mingle else ("--without-mingle", *arguments)  # it takes a second
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # the models are tiny, and the machine may be small, or full
        env = os.environ | {
            "GAELP_POLL_INTERVAL_S": "0.2",
            "GAELP_OS_RESERVE": "64MiB",
            **self._settings,
        }
        *program, name = self._program
        command = [sys.executable, "-m", *program, f"{name}={self.name}"]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--loglevel=INFO", *self._arguments],
                env=env,
                cwd=self._cwd,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self.announced, within_s=30, what=f"worker is up; its log:\n{self.log()}")

    def announced(self) -> dict[str, NodeSnapshot]:
        """Its snapshots in Redis by node, empty before it is ready."""
        assert self.process.poll() is None, f"the worker ended:\n{self.log()}"
        keys = self._at.redis.scan_iter(match=self._at.keys.node(self.name))
        texts = filter(None, map(self._at.redis.get, keys))
        found = map(NodeSnapshot.model_validate_json, texts)
        return {snapshot.url: snapshot for snapshot in found if snapshot.pid == self.process.pid}

    def runs(self, invocation_id: str) -> bool:
        """Whether it says that it runs this invocation."""
        told = self.announced().values()
        return any(invocation_id in (*snapshot.running, *snapshot.unplaced) for snapshot in told)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def log(self) -> str:
        return self.log_file.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, *, within_s: float) -> int:
        """Its exit code."""
        return self.process.wait(timeout=within_s)

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
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
