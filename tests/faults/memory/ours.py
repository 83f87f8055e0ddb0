"""A trace under our worker: a real one, on a real Redis, that owns the node."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery.exceptions import TimeoutError as NotReady

from faults.memory.node import Node
from faults.memory.record import Record
from faults.memory.trace import NUM_CTX, NUM_PARALLEL, RESERVE_BYTES, Ask, Trace
from gaelp_tasks import invoke_agent
from gaelp_tasks.celery_app import app
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.results import InvocationHandle
from support.eventually import eventually
from support.paging_server import answer, prompt
from support.worker import GAELP, WorkerProcess

__all__ = ["announced", "ask_for", "ours", "worker_of"]

DONE_S = 120.0  #: for everything to be answered
DECIDED = "Decided: "


def worker_of(node: Node, folder: Path, **settings: str) -> WorkerProcess:
    """A worker that owns the node."""
    given = {
        "GAELP_BROKER_URL": app.settings.broker_url,
        "GAELP_OLLAMA_NODES": node.url,
        "GAELP_OS_RESERVE": str(RESERVE_BYTES),
        "GAELP_NUM_CTX": str(NUM_CTX),
        "GAELP_NUM_PARALLEL": str(NUM_PARALLEL),
        "GAELP_POLL_INTERVAL_S": "1.0",  # as it is by default
    }
    return WorkerProcess(folder, program=GAELP, **given, **settings)


def announced(worker: WorkerProcess, node: Node) -> Callable[[], NodeSnapshot | None]:
    """What the worker tells of the node, once it goes by its cgroup."""

    def look() -> NodeSnapshot | None:
        told = worker.announced().get(node.url)
        return told if told and told.memory.source == node.group.layout.name and told.models else None

    return look


def ask_for(ask: Ask) -> InvocationHandle:
    """Publish it."""
    words = prompt(ask.id, ask.tier, ask.tokens, ask.pace_s)
    handle: InvocationHandle = invoke_agent.apply_async(
        [words], {"model": ask.model, "tier": ask.tier}, task_id=ask.id
    )
    return handle


def ours(trace: Trace, node: Node, folder: Path) -> Record:
    """Live the trace."""
    began = time.monotonic()
    app.redis.flushdb()
    with worker_of(node, folder) as worker:
        eventually(announced(worker, node), within_s=30, what="the node is announced by its cgroup")
        start = time.monotonic()
        node.live(trace.bursts)
        handles = []
        for ask in trace.asks:
            time.sleep(max(0.0, start + ask.at_s - time.monotonic()))
            handles.append(ask_for(ask))
        answers: dict[str, dict[str, Any]] = {}
        failures: dict[str, str] = {}
        for handle in handles:
            try:
                answers[handle.id] = handle.get(timeout=max(0.1, start + DONE_S - time.monotonic()))
            except NotReady:
                failures[handle.id] = f"not answered within {DONE_S:g} s"
            except Exception as error:  # noqa: BLE001  whatever it is, that is its end
                failures[handle.id] = f"{type(error).__name__}: {error}"
        kills, journal, moments = node.group.kills, node.journal(), tuple(node.watch.seen)
        log = worker.log()
    return Record(
        seed=trace.seed,
        kills=kills,
        expected={ask.id: answer(ask.tokens) for ask in trace.asks},
        answers=answers,
        failures=failures,
        journal=journal,
        moments=moments,
        decisions=[json.loads(line.partition(DECIDED)[2]) for line in log.splitlines() if DECIDED in line],
        took_s=time.monotonic() - began,
    )
