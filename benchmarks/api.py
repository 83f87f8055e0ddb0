"""The HTTP API under load: reads and submits of people who are signed in, beside a bare FastAPI app.

One `gaelp api` with its own Redis, and a new database; nobody works, so what is submitted stays queued.
Server and load tool share the machine: of two cores each has one.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
from api_figures import AGENT, BARE, INVOCATION, SUBMIT, Cell, figures_of
from figures import Figure
from http_load import Load
from parts import HERE, cpu_s

from gaelp_tasks.demo.broker import free_port
from gaelp_tasks.demo.parts import Child, Part
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.settings import Settings

__all__ = ["FULL", "QUICK", "Plan", "measure_api"]

SECRET = "of this benchmark, and of nothing but it"  # noqa: S105  signs what the load tool sends
PEOPLE = 16  #: each stays below what one may ask in a second
AGENT_TO_READ = {
    "name": "bench-agent",
    "type": "simulation",
    "config": {"algorithm": "PPO", "seed": 42},
}
INVOCATION_TO_SUBMIT = {"prompt": "Why is the sky blue?", "agent": "chat", "model": "llama3.2:3b"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    seconds: float  #: for each kind of request in a round


FULL = Plan(rounds=3, seconds=5.0)
QUICK = Plan(rounds=1, seconds=2.0)


class Server:
    """A server that is measured."""

    def __init__(self, child: Child, port: int) -> None:
        self._child = child
        self._port = port
        self.url = f"http://127.0.0.1:{port}"

    def cell(self, seconds: float, **asked: Any) -> Cell:
        """What a load of this kind gives. Raises RuntimeError where something is answered otherwise."""
        load = Load(port=self._port, seconds=seconds, **asked)
        before = cpu_s(self._child.pid)
        told = subprocess.run(
            [sys.executable, "http_load.py", json.dumps(asdict(load))],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise RuntimeError(f"{load.paths[0]}: {told.stderr}")
        seen = json.loads(told.stdout)
        if seen["wrong"]:
            raise RuntimeError(f"{load.paths[0]}: {seen['wrong']} answers like {seen['wrong_answer']}")
        spent_s = cpu_s(self._child.pid) - before
        counted = seen["seconds"] / (seen["seconds"] + load.warm_s)
        return Cell(
            per_s=seen["answered"] / seen["seconds"],
            p50_ms=seen["p50_ms"],
            p99_ms=seen["p99_ms"],
            cpu_us=spent_s * counted / max(1, seen["answered"]) * 1e6,
        )


def measure_api(stack: Stack, folder: Path, plan: Plan, *, database: str | None = None) -> list[Figure]:
    """`database`: the address of an empty one; None: a file of SQLite."""
    database = database or f"sqlite:///{folder}/api.db"
    ours, bare = _start_api(stack, folder, database), _start_bare(stack, folder)
    tokens = [_token(f"bench-{number}") for number in range(PEOPLE)]
    reads = {
        AGENT: [_made(ours, "agents", AGENT_TO_READ, token, 201) for token in tokens],
        INVOCATION: [_made(ours, "invocations", INVOCATION_TO_SUBMIT, token, 202) for token in tokens],
    }
    submit = {"method": "POST", "status": 202, "body": json.dumps(INVOCATION_TO_SUBMIT)}
    rounds = []
    for _ in range(plan.rounds):
        cells = {BARE: bare.cell(plan.seconds, paths=["/agents/1"])}
        for kind, paths in reads.items():
            cells[kind] = ours.cell(plan.seconds, paths=paths, tokens=tokens)
        cells[SUBMIT] = ours.cell(plan.seconds, paths=["/api/v1/invocations"], tokens=tokens, **submit)
        rounds.append(cells)
    return figures_of(rounds)


def _start_api(stack: Stack, folder: Path, database: str) -> Server:
    port, metrics_port = free_port(), free_port()
    env = {
        "GAELP_DATABASE_URL": database,
        "GAELP_JWT_SECRET": SECRET,
        "GAELP_API_ADDRESS": f"127.0.0.1:{port}",
        "GAELP_METRICS_ADDRESS": f"127.0.0.1:{metrics_port}",
        "GAELP_API_MAX_WAITING": "1000000",
    }
    return _start(stack, folder, "api", ("-m", "gaelp_tasks.cli", "api"), port, env=env, path="/health")


def _start_bare(stack: Stack, folder: Path) -> Server:
    port = free_port()
    return _start(stack, folder, "bare-api", ("bare_api.py", str(port)), port, env={}, path="/agents/1")


def _start(
    stack: Stack,
    folder: Path,
    name: str,
    arguments: Sequence[str],
    port: int,
    *,
    env: dict[str, str],
    path: str,
) -> Server:
    command = (sys.executable, *arguments)
    child = stack.start(Part(name=name, command=command, cwd=HERE, env=env, log=folder / f"{name}.log"))
    server = Server(child, port)

    def answers(_: Child) -> bool | None:
        try:
            return requests.get(server.url + path, timeout=5).ok or None
        except requests.ConnectionError:
            return None

    stack.wait_for(child, answers)
    return server


def _token(name: str) -> str:
    caller = Caller(name=name, tenant="bench", role=Role.OPERATOR)
    return Tokens(Settings(jwt_secret=SECRET)).issue(caller, 3600)


def _made(server: Server, noun: str, body: dict[str, Any], token: str, status: int) -> str:
    """Where a new one is."""
    answer = requests.post(
        f"{server.url}/api/v1/{noun}", json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30
    )
    if answer.status_code != status:
        raise RuntimeError(f"{noun}: {answer.status_code} {answer.text}")
    return f"/api/v1/{noun}/{answer.json()['id']}"
