"""Which version of a model the nodes have: its digest, without which nothing may be taken from the cache."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from gaelp_tasks.clients.base import BaseOllamaClient, ModelInfo
from gaelp_tasks.clients.wire import canonical

__all__ = ["Digests"]

WAIT_S = 0.5  #: for a node to tell; a hung one must not hold up what is known


class Digests:
    """The digests that nodes told lately, by node and model.

    A node that does not answer keeps the digests it told last: it can make nothing else meanwhile, and what
    was made with them stays true.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[tuple[str, BaseOllamaClient]]],
        tick: Callable[[], float],
        *,
        fresh_s: float,
    ) -> None:
        self._nodes = nodes
        self._tick = tick
        self._fresh_s = fresh_s
        self._told: dict[str, dict[str, str]] = {}
        self._asked_at: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._hung: set[str] = set()  #: nodes that are asked already and let us wait

    def learn(self, node: str, models: Sequence[ModelInfo], asked_at: float) -> None:
        """What a node listed when it was asked at that `tick`."""
        if asked_at >= self._asked_at.get(node, asked_at):
            self._told[node] = {canonical(model.name): model.digest for model in models}
            self._asked_at[node] = asked_at

    def told(self, model: str) -> str | None:
        """As `of`, by what the nodes told last, however long ago; None where none has told anything yet."""
        return self._common(model) if self._told else None

    async def of(self, model: str) -> str:
        """The one digest of the model on all nodes that tell it; '' where none does, or they differ."""
        oldest = self._tick() - self._fresh_s
        nodes = self._nodes()
        await asyncio.gather(*(self._ask(node, client, oldest) for node, client in nodes))
        return self._common(model)

    def _common(self, model: str) -> str:
        named = {self._told.get(node, {}).get(canonical(model), "") for node, _ in self._nodes()} - {""}
        return named.pop() if len(named) == 1 else ""

    async def is_still(self, digest: str, model: str, node: str, *, since: float) -> bool:
        """Whether the node tells this digest when it is asked after the tick `since`."""
        for url, client in self._nodes():
            if url == node:
                await self._ask(node, client, since)
        listed = self._told.get(node, {}).get(canonical(model), "")
        return self._asked_at.get(node, -1.0) >= since and listed == digest != ""

    async def _ask(self, node: str, client: BaseOllamaClient, oldest: float) -> None:
        """Have an answer not older than `oldest`, one question for all; wait a little, not for ever."""
        for _ in range(2):  # one that is under way may have begun too early
            if self._asked_at.get(node, -1.0) >= oldest:
                return
            asking = self._asking.get(node)
            if asking is None:
                asking = self._asking[node] = asyncio.create_task(self._put(node, client))
                asking.add_done_callback(lambda _: self._asking.pop(node, None))
            elif node in self._hung:
                return
            try:
                async with asyncio.timeout(WAIT_S):
                    await asyncio.shield(asking)
            except TimeoutError:
                self._hung.add(node)

    async def _put(self, node: str, client: BaseOllamaClient) -> None:
        now = self._tick()
        with suppress(Exception):  # whatever a client raises, it is a miss and no reason to fail
            self.learn(node, await client.models(), now)
            self._hung.discard(node)
