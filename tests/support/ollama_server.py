"""A real Ollama of our own for the tests marked `ollama`: started where the program is on PATH."""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from gaelp_tasks.demo.weights import fetch_minilm, fetch_smollm2
from support.eventually import eventually
from support.ports import free_port
from support.real_ollama import Server

CACHE = Path(__file__).parents[2] / ".cache" / "models"
CREATE_S = 60.0


class OllamaServer:
    """`with OllamaServer(folder) as server: ... server.url`; private models, loopback, no cloud."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def program() -> str | None:
        """The program on PATH, None where there is none."""
        return shutil.which("ollama")

    def __enter__(self) -> Self:
        program = self.program()
        assert program is not None
        env = os.environ | {
            "HOME": str(self._folder),
            "OLLAMA_HOST": f"127.0.0.1:{self._port}",
            "OLLAMA_MODELS": str(self._folder / "models"),
            "OLLAMA_NUM_PARALLEL": "2",
            "OLLAMA_NO_CLOUD": "1",  # it would ask its maker's site for recommendations
        }
        with (self._folder / "ollama.log").open("wb") as log:
            self._process = subprocess.Popen([program, "serve"], env=env, stdout=log, stderr=log)
        try:
            eventually(self._answers, within_s=30, what=f"{program} answers at {self.url}")
            server = Server(self.url, timeout_s=CREATE_S)
            server.create("smollm2:135m", fetch_smollm2(CACHE))
            server.create("all-minilm", fetch_minilm(CACHE))
        except BaseException:
            self._end()
            raise
        return self

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/api/version", timeout=5).ok
        except requests.ConnectionError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
