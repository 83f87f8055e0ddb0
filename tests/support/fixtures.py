"""Real servers for tests: one Redis and one model server for the session, workers where asked for."""

import os
import subprocess
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu import pools

from gaelp_tasks.celery_app import app
from support.wheel_index import WheelIndex
from support.worker import WorkerProcess


@pytest.fixture(scope="session")
def broker():
    """The Redis that the app of this process talks to."""
    from support.redis_server import RedisServer

    server = RedisServer()
    server.port = urlsplit(app.settings.broker_url).port or 0
    with server:
        yield server
        app.close()
        app.redis.close()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real model server with a tiny chat model and a tiny embedding model, four slots each."""
    from support.model_server import ROOMY, ModelServer

    with ModelServer(tmp_path_factory.mktemp("models"), num_ctx=ROOMY) as server:
        yield server.url


@pytest.fixture(scope="session")
def real_ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Ollama with SmolLM2 and MiniLM: GAELP_TEST_OLLAMA_URL, else one of our own."""
    from support.ollama_server import OllamaServer

    if url := os.environ.get("GAELP_TEST_OLLAMA_URL"):
        yield url
    elif OllamaServer.program() is None:
        pytest.skip("no ollama on PATH, and GAELP_TEST_OLLAMA_URL is not set")
    else:
        with OllamaServer(tmp_path_factory.mktemp("ollama")) as server:
            yield server.url


@pytest.fixture
def start_worker(broker, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start workers on an empty Redis: `start_worker(GAELP_OLLAMA_NODES=url, name="a")`."""
    pools.reset()  # an earlier test may have cut the connections that this process keeps for kombu
    app._after_fork()
    app.redis.flushdb()
    with ExitStack() as stack:

        def start(*arguments: str, **settings: Any) -> WorkerProcess:
            worker = WorkerProcess(tmp_path, *arguments, **{"GAELP_BROKER_URL": broker.url, **settings})
            return stack.enter_context(worker)

        yield start


@pytest.fixture(scope="module")
def worker(broker, node: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker with four slots beside the tiny models, shared by the tests of a module, on an empty Redis."""
    app.redis.flushdb()  # what another module has left queued may run for a minute
    with WorkerProcess(
        tmp_path_factory.mktemp("worker"),
        GAELP_BROKER_URL=broker.url,
        GAELP_OLLAMA_NODES=node,
        GAELP_NUM_PARALLEL="4",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with celery, redis and what they need, and nothing of ours."""
    home = tmp_path_factory.mktemp("service")
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    pins = str(Path(__file__).parents[2] / "requirements" / "base.txt")
    subprocess.run([*pip, "--no-compile", "--require-hashes", "-r", pins], check=True, cwd=home)
    return python


@pytest.fixture
def wheel_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelIndex:
    """Where pip finds what the test publishes, and nothing else."""
    return WheelIndex(tmp_path / "index", monkeypatch)
