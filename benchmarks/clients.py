"""Clients: how much later an answer comes through one of ours than over a bare HTTP client."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter_ns

import aiohttp
from figures import Figure, percentile
from parts import start_node
from source import MODEL, prompt

from gaelp_tasks.clients import BaseOllamaClient, DistributedOllamaClient, LocalOllamaClient
from gaelp_tasks.clients.routers import router_named
from gaelp_tasks.demo.stack import Stack

__all__ = ["FULL", "QUICK", "Plan", "measure_clients"]

NODES = 3
ROUTERS = ("least-loaded", *(("sollol",) if find_spec("sollol") else ()))
ASKED = prompt(1, 0)
WARM = 50  #: calls that open connections and fill caches

Call = Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    calls: int  #: of each way in a round


FULL = Plan(rounds=5, calls=500)
QUICK = Plan(rounds=2, calls=200)


def bare(session: aiohttp.ClientSession, node: str) -> Call:
    """The least that reads an answer: no limits, no checks."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": ASKED}]}

    async def call() -> None:
        async with session.post(f"{node}/api/chat", json=body) as response:
            async for line in response.content:
                json.loads(line)

    return call


def through(client: BaseOllamaClient) -> Call:
    async def call() -> None:
        async with aclosing(client.chat(ASKED)) as stream:
            async for _ in stream:
                pass

    return call


async def measure(nodes: list[str], plan: Plan) -> list[Figure]:
    """The ways take turns call by call; what one adds is the difference of medians within a round."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        ways = {"bare": bare(session, nodes[0])}
        local = LocalOllamaClient(MODEL, nodes[0])
        ways["LocalOllamaClient"] = through(await stack.enter_async_context(local))
        for name in ROUTERS:
            client = DistributedOllamaClient(MODEL, router_named(name, nodes))
            ways[f"DistributedOllamaClient, {name}"] = through(await stack.enter_async_context(client))
        for call in ways.values():
            for _ in range(WARM):
                await call()
        rounds = [await one_round(ways, plan.calls) for _ in range(plan.rounds)]
    base = [found["bare"] for found in rounds]
    figures = [Figure(name="one-token chat p50: bare aiohttp", unit="ms", rounds=tuple(base))]
    figures += [
        Figure(
            name=f"one-token chat p50: added by {name}",
            unit="ms",
            rounds=tuple(found[name] - less for found, less in zip(rounds, base, strict=True)),
            at_most=1.0 if name.startswith("Local") else 2.0,
        )
        for name in ways
        if name != "bare"
    ]
    return figures


async def one_round(ways: dict[str, Call], calls: int) -> dict[str, float]:
    """The median of each way, in milliseconds."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(calls):
        for name in ways if number % 2 else reversed(ways):
            begun = perf_counter_ns()
            await ways[name]()
            found[name].append((perf_counter_ns() - begun) / 1e6)
    return {name: percentile(times, 50) for name, times in found.items()}


def measure_clients(folder: Path, plan: Plan) -> list[Figure]:
    """The nodes are processes of their own; this one calls them."""
    with Stack() as stack:
        nodes = [start_node(stack, folder, f"node-{number}")[1] for number in range(NODES)]
        return asyncio.run(measure(nodes, plan))
