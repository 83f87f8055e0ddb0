"""The demo model server as a real process with tiny models, and a look into its slots."""

import json
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import requests

from gaelp_tasks.demo.tiny_model import write_tiny_chat_model, write_tiny_embed_model
from support.eventually import eventually

ROOT = Path(__file__).parents[2]
CHAT_MODEL = "tiny:latest"
EMBED_MODEL = "tiny-embed:latest"
ROOMY = 32_768  #: tokens of context: what shall not stop goes on for longer than a test takes
READY_S = 60.0
GONE_S = 20.0


def tiny_models(folder: Path) -> dict[str, Path]:
    """A chat model and an embedding model under the names that tests use."""
    return {
        CHAT_MODEL: write_tiny_chat_model(folder / "tiny.gguf", context_length=ROOMY),
        EMBED_MODEL: write_tiny_embed_model(folder / "tiny-embed.gguf"),
    }


def slow_model(folder: Path) -> Path:
    """A chat model that takes seconds for 2000 tokens and for a long prompt: time to cancel it."""
    return write_tiny_chat_model(folder / "slow.gguf", width=512, blocks=8, context_length=ROOMY)


class ModelServer:
    """`with ModelServer(folder, num_parallel=2) as server:`; ended with its engines whatever happens.

    `models` maps names to GGUF files, default: `tiny` and `tiny-embed`; other keywords are its flags.
    """

    def __init__(self, folder: Path, *, models: Mapping[str, Path] | None = None, **flags: object) -> None:
        self.log_file = folder / "model-server.log"
        self._models = tiny_models(folder) if models is None else models
        self._flags = flags
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        command = [sys.executable, "-m", "gaelp_tasks.demo.model_server"]
        for name, path in self._models.items():
            command += ["--model", f"{name}={path}"]
        for flag, value in self._flags.items():
            command += [f"--{flag.replace('_', '-')}", str(value)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], READY_S)
        line = self._process.stdout.readline() if ready else ""
        assert line, f"the model server did not start:\n{self.log()}"
        self.url = json.loads(line)["url"]

    def start_again(self) -> None:
        """After it ended: on the same port."""
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._flags["port"] = self.url.rpartition(":")[2]
        self.start()

    @property
    def process(self) -> "subprocess.Popen[str]":
        assert self._process is not None
        return self._process

    def log(self) -> str:
        return self.log_file.read_text()

    def engines(self) -> list[psutil.Process]:
        """The child processes, one per loaded model."""
        return psutil.Process(self.process.pid).children()

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, timeout=GONE_S)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Mapping[str, object], **keywords: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=READY_S, **keywords)

    def slots(self, model: str = CHAT_MODEL) -> dict[str, int]:
        """Slots of a model: slots, busy, waiting, processing."""
        return self.get("/api/gaelp/slots")[model]

    def is_idle(self, model: str = CHAT_MODEL) -> bool:
        """Nobody holds or awaits a slot, and the engine computes nothing."""
        slots = self.slots(model)
        return slots["busy"] == slots["waiting"] == slots["processing"] == 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after that signal; its engines are gone."""
        engines = self.engines()
        self.process.send_signal(number)
        code = self.process.wait(timeout=GONE_S)
        eventually(
            lambda: not any(is_running(engine) for engine in engines),
            within_s=GONE_S,
            what="engines are gone",
        )
        return code

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
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=GONE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def is_running(process: psutil.Process) -> bool:
    """Whether it lives; a zombie that nobody reaps (PID 1 of a container) does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
