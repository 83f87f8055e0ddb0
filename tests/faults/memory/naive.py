"""The same traces under the design's first formula: slots by free memory once a second, and nothing else.

    slots = max(1, floor((free - reserve) / (model * factor)))

Models are loaded by the server when they are called; nobody keeps a ledger or unloads for a neighbour.
"""

import asyncio
import time
from collections import deque

from faults.memory.node import Node
from faults.memory.trace import NUM_PARALLEL, RESERVE_BYTES, Ask, Trace
from gaelp_tasks.clients import LocalOllamaClient
from gaelp_tasks.errors import NodeError
from support.paging_server import PagedModel, prompt

__all__ = ["naively"]

POLL_S = 1.0
LOOK_S = 0.02
SAFETY_FACTOR = 1.5
MOST_S = 60.0  #: for a trace


def naively(trace: Trace, node: Node) -> float | None:
    """Live the trace; after how many seconds the kernel killed somebody, None where it never did."""
    return asyncio.run(_Naive(trace, node).live())


class _Naive:
    def __init__(self, trace: Trace, node: Node) -> None:
        self.trace, self.node = trace, node
        self.client = LocalOllamaClient(api_base=node.url)
        self.models = {model.name: model for model in trace.models}
        self.waiting: dict[str, deque[Ask]] = {name: deque() for name in self.models}
        self.running: dict[str, set[asyncio.Task[None]]] = {name: set() for name in self.models}
        self.slots = dict.fromkeys(self.models, 1)

    async def live(self) -> float | None:
        began = time.monotonic()
        self.node.live(self.trace.bursts)
        to_come, polled_s = deque(self.trace.asks), -POLL_S
        try:
            while (now_s := time.monotonic() - began) < MOST_S:
                if self.node.group.kills:
                    return now_s
                while to_come and to_come[0].at_s <= now_s:
                    ask = to_come.popleft()
                    self.waiting[ask.model].append(ask)
                if now_s - polled_s >= POLL_S:
                    polled_s = now_s
                    self.poll()
                self.start()
                if not (to_come or any(self.waiting.values()) or any(self.running.values())):
                    return None
                await asyncio.sleep(LOOK_S)
            return None
        finally:
            tasks = [task for tasks in self.running.values() for task in tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.client.close()

    def poll(self) -> None:
        free_bytes = self.node.group.free_bytes
        self.slots = {name: slots(model, free_bytes) for name, model in self.models.items()}

    def start(self) -> None:
        for name, asks in self.waiting.items():
            while asks and len(self.running[name]) < self.slots[name]:
                task = asyncio.get_running_loop().create_task(self.call(asks.popleft()))
                self.running[name].add(task)
                task.add_done_callback(self.running[name].discard)

    async def call(self, ask: Ask) -> None:
        words = prompt(ask.id, ask.tier, ask.tokens, ask.pace_s)
        try:
            async for _ in self.client.chat(words, model=ask.model):
                pass
        except NodeError:
            pass  # it has lost its model; that is seen elsewhere


def slots(model: PagedModel, free_bytes: int) -> int:
    """The formula; more than the server's own slots would only wait there."""
    fit = int((free_bytes - RESERVE_BYTES) / (model.estimate_bytes * SAFETY_FACTOR))
    return min(NUM_PARALLEL, max(1, fit))
