"""Loads and unloads models of one node: one load for all who wait, and an unload once its runs have ended."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from gaelp_tasks import counts
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.clients.local import LocalOllamaClient
from gaelp_tasks.connections import unavailable
from gaelp_tasks.errors import NodeBusy, NodeError
from gaelp_tasks.tasks.resources import Resources

__all__ = ["LEAST_S", "Loader"]

logger = logging.getLogger(__name__)

CUT_S = 1.0  #: for the runs of a model to end before it is unloaded; the server waits for those that do not
LEAST_S = 0.01  #: between two looks


class Loader:
    """What is under way on the server of `client`; `changed` is set whenever a load or an unload ends."""

    def __init__(self, at: Resources, client: LocalOllamaClient, changed: asyncio.Event) -> None:
        self.loads: dict[str, asyncio.Task[None]] = {}
        self.brought: set[str] = set()  #: loads that have ended well since this was emptied
        self.failures: dict[str, NodeError] = {}  #: and those that have not
        self.waits_since: dict[str, float] = {}  #: models for which somebody waits, by `tick`
        self._at = at
        self._client = client
        self._changed = changed
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._unloads: dict[str, asyncio.Task[None]] = {}

    async def wait(self, model: str) -> None:
        """Until it is there. Raises what its load failed with, NodeBusy where it does not begin."""
        waiter = self._waiters.get(model)
        if waiter is None:
            waiter = self._waiters[model] = asyncio.get_running_loop().create_future()
            self.waits_since[model] = self._at.tick()
        self._changed.set()
        await asyncio.shield(waiter)

    def settle(self, model: str, error: NodeError | None = None) -> None:
        """End the waiting for it."""
        waiter = self._waiters.pop(model, None)
        self.waits_since.pop(model, None)
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
            waiter.exception()  # nobody may be left who hears it

    def busy(self, words: str) -> NodeBusy:
        """For who shall try again, here or on another node."""
        return NodeBusy(words, node=self._client.node, retry_after_s=0.0)

    def give_up(self, error: NodeError) -> None:
        """Nothing is known of the server: nobody shall wait for what is not being loaded."""
        for model in self._waiters.keys() - self.loads.keys():
            self.settle(model, error)

    def end(self) -> None:
        """Nothing is carried out any more."""
        for model in tuple(self._waiters):
            self.settle(model, self.busy("This worker ends."))
        for task in (*self.loads.values(), *self._unloads.values()):
            task.cancel()

    def load(self, model: str) -> None:
        """Begin; an unload that is late must not hit what is loaded anew."""
        if (late := self._unloads.pop(model, None)) is not None:
            late.cancel()
        self.loads[model] = asyncio.create_task(self._bring_in(model))

    async def _bring_in(self, model: str) -> None:
        try:
            await self._client.bring_in(model)
            self.brought.add(model)
        except NodeError as error:
            logger.warning("%s did not load %s: %s", self._client.node, model, error)
            self.failures[model] = error
            self.settle(model, error)
        finally:
            self.loads.pop(model, None)
            self._changed.set()

    def unload(self, model: str, cut: Sequence[str]) -> None:
        """Stop these runs of it and its load, and have the server let it go."""
        for invocation_id in cut:
            self._at.runs.stop(invocation_id, Reason.EVICTION)
        if (load := self.loads.get(model)) is not None:
            load.cancel()  # its connection closes, and the server gives the load up
        self.settle(model, self.busy(f"{model} gives way: its memory is needed."))
        self._unloads[model] = asyncio.create_task(self._let_go(model, len(cut)))

    async def _let_go(self, model: str, cut: int) -> None:
        until = self._at.tick() + CUT_S
        while any(need.asked.runs and need.asked.model == model for need in self._at.demand.needs()):
            if self._at.tick() > until:
                break
            await asyncio.sleep(LEAST_S)
        try:
            await self._client.unload(model)
        except NodeError as error:
            logger.warning("%s did not unload %s: %s", self._client.node, model, error)
        self._changed.set()
        with suppress(*unavailable):
            if cut:
                await self._at.redis.hincrby(self._at.keys.counts, counts.EVICTED, cut)
