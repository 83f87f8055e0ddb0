"""The real processes that are measured: Redis, the token source, the workers."""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from plain import URL_VARIABLE
from witness import FORBIDDEN

from gaelp_tasks import app
from gaelp_tasks.demo.broker import find_server, start_broker
from gaelp_tasks.demo.parts import Child, Part
from gaelp_tasks.demo.programs import announced, worker_part
from gaelp_tasks.demo.stack import Stack

__all__ = [
    "Beside",
    "cpu_s",
    "start_beside",
    "start_deaf",
    "start_node",
    "start_ours",
    "start_paced",
    "start_plain",
    "start_redis",
    "start_relay",
    "start_source",
    "start_witnesses",
    "start_worker",
]

HERE = Path(__file__).parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Beside(NamedTuple):
    """A node: a model server and the worker beside it."""

    name: str  #: of the worker
    url: str
    server: Child
    worker: Child


def start_redis(stack: Stack, folder: Path, cache: Path) -> None:
    """Redis for everybody: database 0 is ours, 1 plain Celery's; our settings learn where it is."""
    binary = find_server(cache, report=print)
    child, port = start_broker(binary, folder / "redis", log=folder / "redis.log")
    stack.adopt(child)
    os.environ["GAELP_BROKER_URL"] = f"redis://127.0.0.1:{port}/0"
    os.environ[URL_VARIABLE] = f"redis://127.0.0.1:{port}/1"


def start_source(stack: Stack, folder: Path) -> str:
    """The token source; returns its address, which our settings learn too."""
    _, os.environ["GAELP_OLLAMA_NODES"] = start_node(stack, folder, "source")
    return os.environ["GAELP_OLLAMA_NODES"]


def start_node(
    stack: Stack, folder: Path, name: str, port: int = 0, *, program: str = "source.py"
) -> tuple[Child, str]:
    """A token source of its own and its address; port 0 is a free one."""
    child = stack.start(_part(name, folder, program, str(port)))
    return child, f"http://127.0.0.1:{stack.wait_for(child, lambda child: child.output().strip() or None)}"


def start_paced(stack: Stack, folder: Path) -> str:
    """The paced server; returns its address, which our settings learn too."""
    _, url = start_node(stack, folder, "paced", program="paced_server.py")
    os.environ["GAELP_OLLAMA_NODES"] = url
    return url


def start_ours(stack: Stack, folder: Path, *, slots: int) -> Child:
    """Our worker, ready."""
    env = {"GAELP_NUM_PARALLEL": str(slots)}
    child = stack.start(_celery("ours", folder, "--app=gaelp_tasks", "--include=noop", env=env))
    stack.wait_for(child, partial(announced, settings=app.settings))
    return child


def start_worker(stack: Stack, folder: Path, *, slots: int) -> Child:
    """`gaelp worker`, ready."""
    env = {"GAELP_NUM_PARALLEL": str(slots), "GAELP_DRAIN_GRACE_S": "10"}
    child = stack.start(worker_part(env, log=folder / "worker.log"))
    stack.wait_for(child, partial(announced, settings=app.settings))
    return child


def start_beside(stack: Stack, folder: Path, name: str, *, slots: int) -> Beside:
    """A paced server and a `gaelp worker` of this name beside it, ready."""
    server, url = start_node(stack, folder, f"server-of-{name}", program="paced_server.py")
    env = {"GAELP_NUM_PARALLEL": str(slots), "GAELP_DRAIN_GRACE_S": "10", "GAELP_OLLAMA_NODES": url}
    part = worker_part(env, log=folder / f"{name}.log")
    worker = stack.start(replace(part, name=name, command=(*part.command, f"--name={name}")))
    stack.wait_for(worker, partial(announced, settings=app.settings))
    return Beside(name, url, server, worker)


def start_deaf(stack: Stack, folder: Path, *, slots: int) -> Child:
    """Our worker as a user whom Redis tells nothing of what comes, ready."""
    may_not_track = ("-client", *(f"+client|{word}" for word in ("id", "list", "setname", "setinfo")))
    app.redis.acl_setuser(
        "deaf", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", *may_not_track]
    )
    url = os.environ["GAELP_BROKER_URL"].replace("//", "//deaf:any@")
    env = {"GAELP_NUM_PARALLEL": str(slots), "GAELP_BROKER_URL": url}
    child = stack.start(_celery("deaf", folder, "--app=gaelp_tasks", "--include=noop", env=env))
    stack.wait_for(child, lambda child: " ready." in child.output() or None)
    return child


def start_plain(stack: Stack, folder: Path, *, slots: int, queues: str = "celery") -> Child:
    """A plain worker, ready."""
    arguments = (f"--concurrency={slots}", f"--queues={queues}")
    child = stack.start(_celery("plain", folder, "--app=plain", *arguments))
    stack.wait_for(child, lambda child: " ready." in child.output() or None)
    return child


def start_relay(stack: Stack, folder: Path, node: str) -> Child:
    """The process that adds each token to Redis by itself, ready."""
    child = stack.start(_part("relay", folder, "relay.py", os.environ[URL_VARIABLE], node))
    stack.wait_for(child, lambda child: "ready" in child.output() or None)
    return child


def start_witnesses(stack: Stack, folder: Path) -> list[Child]:
    """One for each processor, watching; none where they may not go before other programs."""
    cpus = sorted(os.sched_getaffinity(0))
    children = [stack.start(_part(f"witness-{cpu}", folder, "witness.py", str(cpu))) for cpu in cpus]
    told = [stack.wait_for(child, lambda child: child.output().strip() or None) for child in children]
    return [] if FORBIDDEN in told else children


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far, in user code and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _celery(name: str, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Part:
    command = (sys.executable, "-m", "celery", *arguments[:1], "worker", *arguments[1:])
    command += (f"--hostname={name}@bench", "--loglevel=info")
    return Part(name=name, command=command, cwd=HERE, env=env or {}, log=folder / f"{name}.log")


def _part(name: str, folder: Path, *command: str) -> Part:
    return Part(name=name, command=(sys.executable, *command), cwd=HERE, log=folder / f"{name}.log")
