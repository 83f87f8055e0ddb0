"""A service that has celery and redis and nothing of ours: its calls, its worker, its beat."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent / "service"


class Service:
    """`Service(plain_python, broker.url, folder)`; its code is in tests/support/service unless said."""

    def __init__(self, python: Path, broker_url: str, folder: Path, code: Path = HOME) -> None:
        self.folder = folder
        self._python = python
        self._env = {
            "PATH": os.environ["PATH"],
            "CELERY_BROKER_URL": broker_url,
            "CELERY_RESULT_BACKEND": broker_url,
            "PYTHONPATH": str(code),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def calls(self, name: str, *arguments: str, within_s: float = 100) -> dict[str, Any]:
        """What a function of calls.py tells."""
        done = subprocess.run(
            [str(self._python), str(HOME / "calls.py"), name, *arguments],
            env=self._env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    @contextmanager
    def program(self, *arguments: str, application: str = "service") -> Iterator[Path]:
        """Its own `celery worker` or `celery beat`, until the block ends; gives the log."""
        log_file = self.folder / f"service-{arguments[0]}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [str(self._python), "-m", "celery", "-A", application, *arguments, "--loglevel=INFO"],
                env=self._env,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield log_file
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
