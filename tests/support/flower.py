"""A real Flower for a test, and a scene for it to watch: secrets in every prompt and answer."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import requests
from celery import Celery

from gaelp_tasks import embed, invoke_agent
from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.demo.programs import answering
from gaelp_tasks.models import Message
from support.eventually import eventually
from support.ports import free_port
from support.worker import WorkerProcess

LOGIN = ("gaelp", "pass:word, with odd {}")
WORD = "pomegranate"  #: in every prompt and answer
#: what the worker needs to play the scene
SCENE = {
    "GAELP_AGENTS": '{"echo": "support.flower:Echo", "fault": "support.flower:Fault", '
    '"syntax": "support.flower:Syntax"}',
    "GAELP_NUM_PARALLEL": "2",
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
    ),
}


class Echo(BaseAgent):
    """Answers with the prompt, then thinks about it until it is stopped."""

    async def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse]:
        yield ChatResponse(content=f"You said: {messages[-1].content}")
        if "wait" in messages[-1].content:
            await asyncio.Event().wait()
        yield ChatResponse(content=".")


class Fault(BaseAgent):
    """Fails as programs do: with what it was given in the message of a second exception."""

    async def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse]:
        said = messages[-1].content
        try:
            int(said)
        except ValueError as error:
            raise LookupError(f'no {said}\n  File "/x.py", line 1, in {WORD}') from error
        yield ChatResponse(content="?")


class Syntax(BaseAgent):
    """Compiles what it was given, whose text Python then quotes in the traceback."""

    async def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse]:
        compile(messages[-1].content, "<given>", "exec")
        yield ChatResponse(content="?")


class FlowerProcess:
    """`with FlowerProcess(folder, broker_url) as flower: flower.get("/tasks")`; ended whatever happens."""

    def __init__(self, folder: Path, broker_url: str, *flags: str, **settings: str) -> None:
        self.folder = folder
        self.log_file = folder / "flower.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "gaelp_tasks.cli", "flower", f"--port={self.port}", *flags]
        login = {"GAELP_BROKER_URL": broker_url, "GAELP_FLOWER_LOGIN": ":".join(LOGIN)}
        self._env = {**os.environ, **login, **settings}

    def get(self, path: str, *, login: tuple[str, str] | None = LOGIN, **more: Any) -> requests.Response:
        return self.ask("GET", path, login=login, **more)

    def ask(
        self, method: str, path: str, *, login: tuple[str, str] | None = LOGIN, **more: Any
    ) -> requests.Response:
        given = tuple(part.encode() for part in login) if login else None
        return requests.request(method, self.url + path, auth=given, timeout=20, **more)

    def tasks(self) -> dict[str, dict[str, Any]]:
        """What it knows of tasks, by id."""
        return self.get("/api/tasks").json()

    def watches(self, worker: WorkerProcess) -> None:
        """Wait until it hears the worker and knows its queues."""
        for query in ({"status": 1}, {}):
            eventually(
                lambda query=query: self.get("/api/workers", params=query).json().get(worker.name),
                what=f"Flower sees {worker.name}",
            )

    def log(self) -> str:
        return self.log_file.read_text()

    def __enter__(self) -> Self:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            eventually(self._is_up, within_s=40, what="Flower answers")
        except BaseException:
            self._end()
            raise
        return self

    def _is_up(self) -> bool | None:
        assert self.process.poll() is None, f"Flower ended:\n{self.log()}"
        return answering(None, f"{self.url}/healthcheck")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Played(NamedTuple):
    """Ids of the scene's invocations."""

    done: tuple[str, ...]
    failed: tuple[str, ...]
    running: tuple[str, ...]
    queued: tuple[str, ...]


#: what waits in each queue at the end of the scene
WAITING = {"interactive.any": 1, "batch.any": 3, "background.any": 1, "interactive": 0}


def play(broker_url: str, worker: WorkerProcess, seen: Any) -> Played:
    """Some done, some failed, two running, some queued; from our own publisher and from plain ones.

    `seen(id, state)` waits until the watcher shows it.
    """
    with Celery("service", broker=broker_url, backend=broker_url) as plain:
        plain.conf.task_send_sent_event = True  # its events carry its arguments in full

        def ask(agent: str, said: str, queue: str = "interactive", **options: Any) -> str:
            sent = plain.send_task(
                "gaelp.invoke_agent", [f"{WORD} {said}"], {"agent": agent}, queue=queue, **options
            )
            return str(sent.id)

        done = (
            invoke_agent.delay(f"Tell me of the {WORD}", options={"num_predict": 5}).id,
            embed.delay([f"a {WORD}"]).id,
            ask("echo", "at once"),
        )
        failed = (ask("fault", "twice"), ask("syntax", "= ="))
        for one in done:
            seen(one, "SUCCESS")
        for one in failed:
            seen(one, "FAILURE")
        running = (
            ask("echo", "wait"),
            ask("echo", "wait"),
        )  # of the highest tier: nothing makes them give way
        for one in running:
            seen(one, "STARTED")
        queued = (
            invoke_agent.delay(f"{WORD}?").id,
            invoke_agent.apply_async([f"{WORD}!"], {"tier": "batch", "priority": 9}).id,
            ask("echo", "later", "batch", priority=9),
            ask("echo", "later", "batch", priority=3),
            ask("echo", "last", "background"),
        )
        for one in queued:
            seen(one, "PENDING")
    assert worker.process.poll() is None
    return Played(done, failed, running, queued)


def shown(flower: FlowerProcess) -> Any:
    """The `seen` of `play` for a Flower."""

    def seen(task_id: str, state: str) -> None:
        eventually(
            lambda: flower.tasks().get(task_id, {}).get("state") == state, what=f"{task_id} is {state}"
        )

    return seen
