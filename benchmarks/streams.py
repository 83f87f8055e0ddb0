"""Token streams: how much later a token arrives than over direct HTTP, and the CPU that each one costs."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns, process_time
from typing import Any, NamedTuple

import aiohttp
import redis.asyncio
from figures import Figure, percentile
from parts import cpu_s, start_ours, start_relay, start_source
from plain import URL_VARIABLE
from relay import JOBS
from source import MODEL, prompt

from gaelp_tasks import invoke_agent
from gaelp_tasks.demo.stack import Stack

__all__ = ["FULL", "QUICK", "Plan", "measure_streams"]

SLOTS = 64
TOKENS_PER_S = 20
OPENING_S = 1.5  #: for all streams to be opened, which takes its time on a slow machine
GIVE_UP_S = 60.0
#: streams, percentile, target in ms
LAG_TARGETS = ((10, 50, 0.5), (50, 99, 10.0))


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    seconds: float  #: of tokens in a round, after the opening
    fast_rounds: int
    fast_tokens: int


FULL = Plan(rounds=3, seconds=2.5, fast_rounds=5, fast_tokens=20_000)
QUICK = Plan(rounds=1, seconds=1.0, fast_rounds=2, fast_tokens=10_000)


class Token(NamedTuple):
    """One token's way, in nanoseconds of the monotonic clock."""

    left: int  #: the source
    came: int  #: into the reader's hands


Reader = Callable[[str], Awaitable[list[Token]]]


def came_now(text: str) -> list[Token]:
    """The tokens in a piece of text."""
    now = monotonic_ns()
    return [Token(int(left), now) for left in text.split()]


class Direct:
    """A plain HTTP client of the node, in this process."""

    def __init__(self, session: aiohttp.ClientSession, node: str) -> None:
        self._session = session
        self._url = f"{node}/api/chat"

    async def __call__(self, asked: str) -> list[Token]:
        tokens: list[Token] = []
        body = {"model": MODEL, "messages": [{"role": "user", "content": asked}]}
        async with self._session.post(self._url, json=body) as response:
            async for line in response.content:
                tokens += came_now(json.loads(line)["message"]["content"])
        return tokens


async def ours(asked: str) -> list[Token]:
    """Our worker, read as an asynchronous service does."""
    tokens: list[Token] = []
    async for text in invoke_agent.delay(asked, model=MODEL).astream(timeout=GIVE_UP_S):
        tokens += came_now(text)
    return tokens


class PlainXadd:
    """The relay, read by one XREAD after the other."""

    def __init__(self) -> None:
        self._number = 0

    async def __call__(self, asked: str) -> list[Token]:
        tokens: list[Token] = []
        self._number += 1
        key, after = f"bench:relay:{os.getpid()}:{self._number}", "0-0"
        async with redis.asyncio.Redis.from_url(os.environ[URL_VARIABLE], decode_responses=True) as store:
            await store.rpush(JOBS, json.dumps({"key": key, "prompt": asked}))
            while True:
                reply: Any = await store.xread({key: after}, block=1000)
                for entry_id, fields in reply[0][1] if reply else ():
                    if "end" in fields:
                        return tokens
                    tokens += came_now(fields["t"])
                    after = entry_id


async def lags_ms(reader: Reader, streams: int, seconds: float) -> list[float]:
    """How old tokens were when they came, of all that left while all streams were open.

    Streams that are just being opened or settled take the machine from the others.
    """
    number = round((OPENING_S + seconds) * TOKENS_PER_S)
    asked = prompt(number, 1 / TOKENS_PER_S)
    async with asyncio.timeout(GIVE_UP_S):
        read = await asyncio.gather(*(reader(asked) for _ in range(streams)))
    for tokens in read:
        if len(tokens) != number:
            raise AssertionError(f"{len(tokens)} of {number} tokens arrived.")
    all_open = max(tokens[0].came for tokens in read)
    first_end = min(tokens[-1].left for tokens in read)
    found = [
        (token.came - token.left) / 1e6
        for tokens in read
        for token in tokens
        if all_open <= token.left < first_end
    ]
    if not found:
        raise AssertionError(f"{streams} streams were never open at once: this machine is too busy.")
    return found


async def measure_lag(readers: dict[str, Reader], plan: Plan) -> list[Figure]:
    """In each round the ways take turns, and what they add to direct HTTP is taken within the round."""
    figures = []
    for streams, percent, target in LAG_TARGETS:
        found: dict[str, list[dict[int, float]]] = {name: [] for name in readers}
        for number in range(plan.rounds):
            for name in readers if number % 2 else reversed(readers):
                lags = await lags_ms(readers[name], streams, plan.seconds)
                found[name].append({which: percentile(lags, which) for which in (50, 99)})
        for which in (50, 99):
            label = f"{streams} streams, p{which}"
            base = [lag[which] for lag in found["direct"]]
            figures.append(Figure(name=f"{label}: direct HTTP", unit="ms", rounds=tuple(base)))
            figures += [
                Figure(
                    name=f"{label}: added by {name}",
                    unit="ms",
                    rounds=tuple(lag[which] - less for lag, less in zip(found[name], base, strict=True)),
                    at_most=target if which == percent and name == "ours" else None,
                )
                for name in readers
                if name != "direct"
            ]
    return figures


async def measure_cpu(direct: Direct, worker_pid: int, plan: Plan) -> list[Figure]:
    """One stream as fast as the source can, through our worker and to a bare client, in turns.

    The worker's figure is all that its process used meanwhile: HTTP, JSON, the run, Redis, and its duties.
    """
    worker_us, reader_us, bare_us = [], [], []
    asked = prompt(plan.fast_tokens, 0)

    async def spent_us(reader: Reader, clock: Callable[[], float]) -> tuple[float, float]:
        before, before_here = clock(), process_time()
        if len(await reader(asked)) != plan.fast_tokens:
            raise AssertionError("Tokens were lost.")
        scale = 1e6 / plan.fast_tokens
        return (clock() - before) * scale, (process_time() - before_here) * scale

    for _ in range(plan.fast_rounds):
        there, here = await spent_us(ours, lambda: cpu_s(worker_pid))
        worker_us.append(there)
        reader_us.append(here)
        bare_us.append((await spent_us(direct, process_time))[0])
    return [
        Figure(name="CPU per fast token: bare HTTP client", unit="us", rounds=tuple(bare_us)),
        Figure(name="CPU per fast token: our worker", unit="us", rounds=tuple(worker_us), at_most=30.0),
        Figure(name="CPU per fast token: reader of our stream", unit="us", rounds=tuple(reader_us)),
    ]


async def _measure(node: str, worker_pid: int, plan: Plan) -> list[Figure]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        direct = Direct(session, node)
        readers: dict[str, Reader] = {"direct": direct, "ours": ours, "plain XADD": PlainXadd()}
        for reader in readers.values():  # threads, connections, caches
            await reader(prompt(100, 0))
        return [*await measure_lag(readers, plan), *await measure_cpu(direct, worker_pid, plan)]


def measure_streams(folder: Path, plan: Plan) -> list[Figure]:
    """Source, worker and readers are processes of their own; this one reads."""
    with Stack() as stack:
        node = start_source(stack, folder)
        start_relay(stack, folder, node)
        worker = start_ours(stack, folder, slots=SLOTS)
        return asyncio.run(_measure(node, worker.pid, plan))
