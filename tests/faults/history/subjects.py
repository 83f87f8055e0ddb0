"""Who is tested: how its workers are started, how it is asked to work, and what its clients can read."""

import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import redis
from celery import Celery, Signature, chain

from faults.history import plain
from faults.history.model_server import WORKER_HEADER, prompt
from faults.history.probes import JOURNAL, PATH, PROBE, WORKER
from faults.history.record import Acceptance
from gaelp_tasks import app as our_app
from gaelp_tasks import invoke_agent
from gaelp_tasks.demo.parts import Part
from gaelp_tasks.streams import End, Piece, Start, parse

RECORD = "celery-task-meta-"
BATCH = 500  #: ids per question to Redis
FAILED = "failed"  #: in place of an answer: record and stream tell the same failure in other words


class Subject(Protocol):
    """One system under test; ids are the harness's."""

    name: str
    fenced: bool  #: what an overtaken run writes is refused, and counted

    def worker(self, name: str, folder: Path, *, url: str, journal: Path) -> Part:
        """The program of a worker; it prints ` ready.` once it takes tasks."""

    def publish(self, task_id: str, seconds: float) -> tuple[str, ...]:
        """Ask for work that takes so long; the ids that were acknowledged by it.

        Raises what the publisher would see.
        """

    def answers(self, store: redis.Redis, ids: Collection[str]) -> Iterator[Acceptance]:
        """What a client that asks now is told of these."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Plain Celery with a pool of its own."""

    fenced = False
    pool: str  #: threads or prefork
    slots: int = 8
    chained: bool = False  #: each task is followed by a second one

    @property
    def name(self) -> str:
        return f"plain Celery, {self.pool}"

    def worker(self, name: str, folder: Path, *, url: str, journal: Path) -> Part:
        more = (f"--pool={self.pool}", f"--concurrency={self.slots}")
        env = {plain.URL: url, JOURNAL: str(journal), WORKER: name}
        return _celery(name, folder, "--app=faults.history.plain", *more, env=env)

    def publish(self, task_id: str, seconds: float) -> tuple[str, ...]:
        return _publish_probe(plain.app, task_id, seconds, chained=self.chained)

    def answers(self, store: redis.Redis, ids: Collection[str]) -> Iterator[Acceptance]:
        return records(store, ids)


@dataclass(frozen=True, kw_only=True)
class OurNoops:
    """Our worker, running the probe as any other Celery task."""

    name = "gaelp-tasks, no-ops"
    fenced = False
    slots: int = 8
    chained: bool = False
    settings: tuple[tuple[str, str], ...] = ()  #: GAELP_ variables

    def worker(self, name: str, folder: Path, *, url: str, journal: Path) -> Part:
        env = {JOURNAL: str(journal), WORKER: name, "GAELP_OLLAMA_NODES": "http://127.0.0.1:9"}
        return _ours(name, folder, url, self, "--include=faults.history.noops", env=env)

    def publish(self, task_id: str, seconds: float) -> tuple[str, ...]:
        return _publish_probe(our_app, task_id, seconds, chained=self.chained)

    def answers(self, store: redis.Redis, ids: Collection[str]) -> Iterator[Acceptance]:
        return records(store, ids)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Our worker, running invocations on a model server at `node`."""

    name = "gaelp-tasks, invocations"
    fenced = True
    node: str
    pace_s: float = 0.02  #: between two tokens; a slow one leaves the processor to what is measured
    slots: int = 8
    chained: bool = False
    settings: tuple[tuple[str, str], ...] = ()

    def worker(self, name: str, folder: Path, *, url: str, journal: Path) -> Part:
        env = {
            "GAELP_OLLAMA_NODES": self.node,
            "GAELP_OLLAMA_HEADERS": json.dumps({WORKER_HEADER: name}),
        }
        return _ours(name, folder, url, self, env=env)

    def publish(self, task_id: str, seconds: float) -> tuple[str, ...]:
        ids, tokens = _ids(task_id, chained=self.chained), 1 + round(seconds / self.pace_s)
        asked = [(invoke_agent.si(prompt(one, tokens, self.pace_s)), one) for one in ids]
        return _publish(our_app, asked)

    def answers(self, store: redis.Redis, ids: Collection[str]) -> Iterator[Acceptance]:
        yield from records(store, ids)
        for some in _batches(ids):
            with store.pipeline(transaction=False) as pipe:
                for task_id in some:
                    pipe.xrange(our_app.keys.stream(task_id))
                for task_id, entries in zip(some, pipe.execute(), strict=True):
                    yield from ends(task_id, entries)


def records(store: redis.Redis, ids: Collection[str]) -> Iterator[Acceptance]:
    """The result records that are there now."""
    for some in _batches(ids):
        for text in store.mget([RECORD + task_id for task_id in some]):
            if text and (told := acceptance(text)):
                yield told


def acceptance(record: str) -> Acceptance | None:
    """What a result record tells a client; None while the task is under way."""
    told = json.loads(record)
    if told["status"] not in {"SUCCESS", "FAILURE", "REVOKED"}:
        return None
    result = told["result"]
    text, attempt = result, 1
    if isinstance(result, dict) and "text" in result:
        text, attempt = result["text"], result["attempts"]
    ok = told["status"] == "SUCCESS"
    return Acceptance(told["task_id"], answer_of(text) if ok else FAILED, monotonic(), ok=ok, attempt=attempt)


def ends(task_id: str, entries: list[tuple[str, dict[str, str]]]) -> Iterator[Acceptance]:
    """The texts that a stream's `end` marks have closed: of one claim, and of those that it goes on from."""
    texts: dict[int, str] = {}
    firsts: dict[int, int] = {}
    for entry_id, fields in entries:
        match parse(entry_id, fields):
            case Start(claim=claim) as start:
                firsts[claim] = start.first
            case Piece(claim=claim, text=text):
                texts[claim] = texts.get(claim, "") + text
            case End(claim=claim, facts=facts):
                parts = range(firsts.get(claim, claim), claim + 1)
                text = "".join(texts.get(part, "") for part in parts)
                ok = facts["outcome"] != "failed"
                yield Acceptance(task_id, answer_of(text) if ok else FAILED, monotonic(), ok=ok)


def answer_of(told: Any) -> str:
    """Short, and different for different answers."""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _publish_probe(app: Celery, task_id: str, seconds: float, *, chained: bool) -> tuple[str, ...]:
    ids = _ids(task_id, chained=chained)
    return _publish(app, [(app.signature(PROBE, kwargs={"seconds": seconds}), one) for one in ids])


def _ids(task_id: str, *, chained: bool) -> tuple[str, ...]:
    return (task_id, f"{task_id}-next") if chained else (task_id,)


def _publish(app: Celery, asked: Sequence[tuple[Signature, str]]) -> tuple[str, ...]:
    """One task, or several as a chain, with these ids, which are returned."""
    steps = [signature.set(task_id=task_id) for signature, task_id in asked]
    if len(steps) > 1:
        chain(*steps, app=app).apply_async()
    else:
        steps[0].apply_async()
    return tuple(task_id for _, task_id in asked)


def _ours(
    name: str, folder: Path, url: str, subject: OurNoops | Ours, *more: str, env: dict[str, str]
) -> Part:
    env = env | {
        "GAELP_BROKER_URL": url,
        "GAELP_NUM_PARALLEL": str(subject.slots),
        **dict(subject.settings),
    }
    return _celery(name, folder, "--app=gaelp_tasks", *more, env=env)


def _celery(name: str, folder: Path, app: str, *more: str, env: dict[str, str]) -> Part:
    command = (sys.executable, "-m", "celery", app, "worker", *more)
    command += (f"--hostname={name}@history", "--loglevel=info", "--without-mingle", "--without-gossip")
    return Part(name=name, command=command, cwd=folder, env=PATH | env, log=folder / f"{name}.log")


def _batches(ids: Collection[str]) -> Iterator[list[str]]:
    every = list(ids)
    for first in range(0, len(every), BATCH):
        yield every[first : first + BATCH]
