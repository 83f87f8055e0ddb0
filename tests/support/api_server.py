"""A real `gaelp api` process for a test, on free ports of this machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from gaelp_tasks.celery_app import app
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.settings import Settings
from support.api import HOUR_S, SECRET
from support.eventually import eventually
from support.ports import free_port

TESTS = str(Path(__file__).parents[1])  #: a program that dies on purpose lies there


class ApiServer:
    """`with ApiServer(folder, GAELP_...="...") as server: requests.get(server.url + "/health")`."""

    def __init__(
        self, folder: Path, *arguments: str, program: str = "gaelp_tasks.cli api", **settings: str
    ) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH")))),
            "GAELP_BROKER_URL": app.settings.broker_url,
            "GAELP_DATABASE_URL": f"sqlite:///{folder / 'api.db'}",
            "GAELP_JWT_SECRET": SECRET,
            "GAELP_API_ADDRESS": f"127.0.0.1:{self.port}",
            "GAELP_METRICS_ADDRESS": f"127.0.0.1:{self.metrics_port}",
            "GAELP_API_URL": self.url,
            **settings,
        }
        self.log_file = folder / f"api-{self.port}.log"
        self._command = [sys.executable, "-m", *program.split(), *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, dies: bool = False) -> None:
        """Until it answers; one that `dies` may have done so before."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(
            lambda: (dies and self.process.poll() is not None) or self._is_up(),
            within_s=60,
            what="the API is up",
        )

    def _is_up(self) -> bool:
        assert self.process.poll() is None, f"the API ended:\n{self.log()}"
        try:
            return requests.get(f"{self.url}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "start() it first"
        return self._process

    def log(self) -> str:
        return self.log_file.read_text()

    def token(self, role: Role = Role.USER, *, tenant: str = "", name: str = "") -> str:
        caller = Caller(name=name or role.value, tenant=tenant, role=role)
        return Tokens(Settings(jwt_secret=SECRET)).issue(caller, HOUR_S)

    def session(self, role: Role = Role.USER, *, tenant: str = "", name: str = "") -> requests.Session:
        """Somebody who is signed in; the caller closes it."""
        made = requests.Session()
        made.headers["Authorization"] = f"Bearer {self.token(role, tenant=tenant, name=name)}"
        return made

    def gaelp(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command with the settings of this API."""
        command = [sys.executable, "-m", "gaelp_tasks.cli", *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def terminate(self) -> int:
        """End it in good order; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """End it as a crash does; `start()` brings it back."""
        self.process.kill()
        self.process.wait(timeout=30)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
