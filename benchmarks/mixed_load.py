"""Mixed load: how long an interactive call waits while background jobs keep every slot busy.

The model server is `paced_server.py`. Ours and plain Celery with three queues take turns on it in every
round; the direct limit is the same background jobs, asked for by one plain client per slot. A call's time to
its first token begins just before it is published and ends when the token is in the reader's hands.
"""

import asyncio
import gc
import itertools
import json
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import plain
import redis
import redis.asyncio
from figures import Figure
from mixed_figures import OURS, Call, Cell, Found, figures_of, report, settled
from paced_server import MODEL, prompt
from parts import cpu_s, start_paced, start_plain, start_witnesses, start_worker
from witness import halts

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.demo.parts import Child
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import lists, route

__all__ = ["FULL", "QUICK", "Plan", "measure_mixed"]

SLOTS = 4
SIZES = (64, 512)  #: tokens of a background job, on the average
SPREAD = 0.25  #: how far jobs are from it
JOB_PROMPT = 32
CALL_PROMPT = 128  #: tokens, of an interactive call
CALL_TOKENS = 32
CALLS_PER_S = 1.0
PAUSE_S = (0.2, 0.5)  #: between two calls of an idle system
SATURATED_S = 3.0  #: from the first job until it counts
LIMIT_TOKENS_S = 420.0  #: more than the server can: so much work is queued
WARM_S = 5.0
WARM_SEED = -1
GIVE_UP_S = 120.0
QUEUES = tuple(tier.value for tier in Tier)


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    seconds: float  #: of load, per side and size in a round
    idle_calls: int  #: per side in a round
    direct_s: float


FULL = Plan(rounds=2, seconds=60.0, idle_calls=50, direct_s=20.0)
QUICK = Plan(rounds=1, seconds=15.0, idle_calls=15, direct_s=8.0)


# --- what is asked ----------------------------------------------------------------------


def jobs(size: int, name: str) -> Iterator[str]:
    """Prompts of background jobs; the same for everybody who names them alike."""
    rng = random.Random(size)  # noqa: S311  seeded
    for number in itertools.count():
        tokens = round(size * rng.uniform(1 - SPREAD, 1 + SPREAD))
        yield prompt(f"{name}-{number}", tokens=tokens, prompt_tokens=JOB_PROMPT)


def arrivals_s(seconds: float, seed: int) -> list[float]:
    """When calls come: a Poisson process of which the number is known, so that no draw is a busy one."""
    rng = random.Random(seed)  # noqa: S311  seeded
    return sorted(rng.uniform(0, seconds) for _ in range(round(CALLS_PER_S * seconds)))


def call_prompt(name: str) -> str:
    """Of an interactive call."""
    return prompt(name, tokens=CALL_TOKENS, prompt_tokens=CALL_PROMPT)


def chat_body(asked: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": asked}]}


# --- who is asked -----------------------------------------------------------------------


class Side(Protocol):
    """One of the two that are compared."""

    name: str
    worker: Child

    def publish(self, asked: str) -> str:
        """A background job; returns its id."""

    def answer(self, asked: str) -> AsyncIterator[str]:
        """An interactive call: its text as it comes."""

    def drop(self) -> None:
        """Forget the background jobs that were never begun."""

    def held(self) -> int:
        """How many jobs and calls are queued or running."""

    def text(self, job: str) -> str | None:
        """The answer of a background job; None where it was dropped."""


class Ours:
    name = OURS

    def __init__(self, worker: Child) -> None:
        self.worker = worker
        self._store = app.redis
        self._jobs = lists(route(Tier.BACKGROUND, MODEL))
        self._calls = lists(route(Tier.INTERACTIVE, MODEL))

    def publish(self, asked: str) -> str:
        return str(invoke_agent.delay(asked, model=MODEL, tier="background").id)

    async def answer(self, asked: str) -> AsyncIterator[str]:
        handle = invoke_agent.delay(asked, model=MODEL, tier="interactive")
        async with aclosing(handle.astream(timeout=GIVE_UP_S)) as pieces:
            async for piece in pieces:
                yield piece

    def drop(self) -> None:
        for queue in self._jobs:
            for message in self._store.lrange(queue, 0, -1):
                if not self._store.exists(app.keys.claims(json.loads(message)["headers"]["id"])):
                    self._store.lrem(queue, 1, message)

    def held(self) -> int:
        with self._store.pipeline(transaction=False) as pipe:
            for queue in (*self._jobs, *self._calls):
                pipe.llen(queue)
            pipe.hlen(app.keys.unacked)
            pipe.zcard(app.keys.parked)
            return sum(pipe.execute())

    def text(self, job: str) -> str | None:
        told = app.backend.get_task_meta(job)
        return told["result"]["text"] if told["status"] == "SUCCESS" else _dropped(told)


class PlainCelery:
    name = "plain Celery"

    def __init__(self, worker: Child, node: str) -> None:
        self.worker = worker
        self._node = node
        self._url = os.environ[plain.URL_VARIABLE]
        self._store = redis.Redis.from_url(self._url)

    def publish(self, asked: str) -> str:
        given = (self._node, chat_body(asked))
        return str(plain.chat.apply_async(given, queue="background").id)

    async def answer(self, asked: str) -> AsyncIterator[str]:
        key, after = f"bench:mixed:{os.getpid()}:{time.monotonic_ns()}", "0-0"
        plain.chat.apply_async((self._node, chat_body(asked), key), queue="interactive")
        async with redis.asyncio.Redis.from_url(self._url, decode_responses=True) as store:
            while True:
                reply: Any = await store.xread({key: after}, block=1000)
                for entry_id, fields in reply[0][1] if reply else ():
                    if "end" in fields:
                        return
                    yield fields["t"]
                    after = entry_id

    def drop(self) -> None:
        self._store.delete("background")

    def held(self) -> int:
        with self._store.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.llen(queue)
            pipe.hlen("unacked")
            return sum(pipe.execute())

    def text(self, job: str) -> str | None:
        told = plain.app.backend.get_task_meta(job)
        return told["result"] if told["status"] == "SUCCESS" else _dropped(told)


def _dropped(told: dict[str, Any]) -> None:
    """Raises AssertionError for a job that was not dropped and did not succeed."""
    if told["status"] != "PENDING":
        raise AssertionError(f"A job ended as {told['status']}: {told['result']}.")


async def call(side: Side, asked: str) -> Call:
    """Ask interactively."""
    published_at, first_at, pieces = time.monotonic(), None, []
    async with asyncio.timeout(GIVE_UP_S):
        async for piece in side.answer(asked):
            first_at = first_at or time.monotonic()
            pieces.append(piece)
    if first_at is None:
        raise AssertionError(f"{side.name} gave no answer to {asked}.")
    return Call(asked=asked, published_at=published_at, first_at=first_at, text="".join(pieces))


# --- how they are measured --------------------------------------------------------------


class Bench:
    """The server's own figures, and its plain client."""

    def __init__(self, session: aiohttp.ClientSession, node: str) -> None:
        self._session = session
        self._node = node

    async def made(self) -> dict[str, Any]:
        async with self._session.get(f"{self._node}/bench/made") as response:
            return dict(await response.json())

    async def record(self) -> list[dict[str, Any]]:
        async with self._session.get(f"{self._node}/bench/record") as response:
            return list((await response.json())["requests"])

    async def ask(self, asked: str) -> None:
        async with self._session.post(f"{self._node}/api/chat", json=chat_body(asked)) as response:
            async for line in response.content:
                json.loads(line)

    async def direct(self, size: int, seconds: float) -> float:
        """Tokens per second that one plain client per slot gets, one job after the other."""
        asked, over = jobs(size, f"direct-{time.monotonic_ns()}"), asyncio.Event()

        async def client() -> None:
            while not over.is_set():
                await self.ask(next(asked))

        clients = [asyncio.create_task(client()) for _ in range(SLOTS)]
        await asyncio.sleep(SATURATED_S)
        before = await self.made()
        await asyncio.sleep(seconds)
        after = await self.made()
        over.set()
        await asyncio.gather(*clients)
        return float((after["made"] - before["made"]) / (after["at"] - before["at"]))


async def loaded(side: Side, bench: Bench, size: int, seconds: float, seed: int) -> Cell:
    """Queue more background jobs than the server can do, and call beside them."""
    name = f"{side.name}-{size}-{seed}"
    seen = len(await bench.record())
    enough = round(LIMIT_TOKENS_S * (SATURATED_S + seconds) / size) + 2 * SLOTS
    published = {side.publish(asked): asked for asked in itertools.islice(jobs(size, name), enough)}
    await asyncio.sleep(SATURATED_S)
    before, cpu_before, calls = await bench.made(), cpu_s(side.worker.pid), []
    async with asyncio.TaskGroup() as calling:
        started = time.monotonic()
        for number, at_s in enumerate(arrivals_s(seconds, seed)):
            await asyncio.sleep(started + at_s - time.monotonic())
            calls.append(calling.create_task(call(side, call_prompt(f"call-{name}-{number}"))))
        await asyncio.sleep(started + seconds - time.monotonic())
        after, cpu_after = await bench.made(), cpu_s(side.worker.pid)
        if side.held() <= SLOTS:
            raise AssertionError(f"{side.name} ran out of jobs: LIMIT_TOKENS_S is too low.")
        await asyncio.to_thread(side.drop)
    await quiet(side, bench)
    done = [call.result() for call in calls]
    answers = [(asked, text) for job, asked in published.items() if (text := side.text(job)) is not None]
    answers += [(call.asked, call.text) for call in done]
    record = (await bench.record())[seen:]
    by_others = sum(row["made"] for row in record if name not in row["job"])  # probes
    return Cell(
        calls=done,
        seconds=after["at"] - before["at"],
        made=after["made"] - before["made"] - by_others,
        useful_in_all=settled(answers),
        cpu_s=cpu_after - cpu_before,
        requests=[row for row in record if name in row["job"]],
    )


async def quiet(side: Side, bench: Bench) -> None:
    """Wait until nothing is queued or running."""
    async with asyncio.timeout(GIVE_UP_S):
        while side.held() or (await bench.made())["busy"]:  # noqa: ASYNC110  queues send no events
            await asyncio.sleep(0.1)


async def idle(sides: Sequence[Side], calls: int, seed: int) -> dict[str, list[Call]]:
    """Calls one after the other; the sides take turns."""
    rng = random.Random(seed)  # noqa: S311  seeded
    found: dict[str, list[Call]] = {side.name: [] for side in sides}
    for number in range(calls):
        for side in sides if number % 2 else reversed(sides):
            found[side.name].append(await call(side, call_prompt(f"idle-{side.name}-{seed}-{number}")))
            await asyncio.sleep(rng.uniform(*PAUSE_S))
    return found


async def measure(sides: Sequence[Side], node: str, plan: Plan) -> Found:
    """In each round every way has its turn."""
    found = Found()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        bench = Bench(session, node)
        for side in sides:  # threads, connections, the model in memory, whether it goes on from a text
            await loaded(side, bench, SIZES[0], WARM_S, WARM_SEED)
        for number in range(plan.rounds):
            for name, calls in (await idle(sides, plan.idle_calls, number)).items():
                found.idle.setdefault(name, []).extend(calls)
            for size in SIZES:
                found.direct.setdefault(size, []).append(await bench.direct(size, plan.direct_s))
                for side in sides if number % 2 else reversed(sides):
                    cell = await loaded(side, bench, size, plan.seconds, number)
                    found.cells.setdefault(size, {}).setdefault(side.name, []).append(cell)
        found.record = await bench.record()
    return found


def measure_mixed(folder: Path, plan: Plan) -> list[Figure]:
    """Server, workers and Redis are processes of their own; this one calls and reads."""
    with Stack() as stack:
        node = start_paced(stack, folder)
        sides = (
            Ours(start_worker(stack, folder, slots=SLOTS)),
            PlainCelery(start_plain(stack, folder, slots=SLOTS, queues=",".join(QUEUES)), node),
        )
        witnesses = start_witnesses(stack, folder)
        gc.collect()
        gc.freeze()  # else a collection now and then stops the reader's clock for 50 ms
        found = asyncio.run(measure(sides, node, plan))
        found.halts = halts(witness.output() for witness in witnesses)
    (folder / "mixed.json").write_text(json.dumps(asdict(found)) + "\n")
    print(report(found))
    return figures_of(found)
