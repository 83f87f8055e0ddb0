"""Looking at the nodes of a distributed client: do they answer, what do they have, is a failed one back."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from gaelp_tasks.clients.base import BaseOllamaClient
from gaelp_tasks.clients.routers.base import NodeRouter
from gaelp_tasks.errors import ModelMissing, NodeError, NodeUnreachable

__all__ = ["Watch", "wait_before_probe_s"]

LOOK_EVERY_S = 5.0  #: while the client is used
PROBE_BASE_S = 0.25  #: from a failure to its first probe; doubled each time
PROBE_CAP_S = 30.0


def wait_before_probe_s(tries: int) -> float:
    """How long a failed node or model is left alone after so many probes in vain."""
    return min(PROBE_BASE_S * 2.0 ** min(tries, 32), PROBE_CAP_S)


class Watch:
    """The looks and probes of one client on one event loop; no thread, and nothing runs while it is unused.

    A look asks a node what it has: the node itself has failed when it gives no answer within its limits. A
    probe has a model answer that failed there. The router is told what both find.
    """

    def __init__(self, router: NodeRouter, client: Callable[[str], BaseOllamaClient]) -> None:
        self._router = router
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._used = False
        self._stopped = False
        self._round_timer: asyncio.TimerHandle | None = None
        self._looks: dict[str, asyncio.Task[NodeUnreachable | None]] = {}
        self._waiting: dict[str, set[asyncio.Timeout]] = {}  # node -> calls without a first word yet
        self._reasons: dict[str, NodeUnreachable] = {}  # node -> why it counts as failed
        self._probes: dict[tuple[str, str], asyncio.TimerHandle | asyncio.Task[None]] = {}

    def touch(self) -> None:
        """The client is used: see to it that its nodes are looked at now and then."""
        self._used = True
        if self._round_timer is None:
            self._round()

    @asynccontextmanager
    async def guard(self, url: str) -> AsyncIterator[None]:
        """Wait for a node's first word, but no longer than it answers a look.

        A model may take minutes to load; a node that is hung would be waited for as long. Raises
        NodeUnreachable.
        """
        limit = asyncio.timeout(None)
        waiting = self._waiting.setdefault(url, set())
        try:
            async with limit:
                waiting.add(limit)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self.reason(url) or NodeUnreachable(f"{url} gives no answer.") from None
        finally:
            waiting.discard(limit)

    async def scout(self, urls: Iterable[str], good: Callable[[str], bool]) -> frozenset[str]:
        """Look at these nodes at once, until one that answers is `good`; those that answered by then."""
        looks = {self._look(url): url for url in urls}
        answered: set[str] = set()
        while looks and not any(map(good, answered)):
            done, _ = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
            ended = [(looks.pop(look), look) for look in done]
            answered |= {url for url, look in ended if not look.cancelled() and look.result() is None}
        return frozenset(answered)

    def reason(self, url: str) -> NodeUnreachable | None:
        """Why a node gave no answer the last time it gave none; None where it always did."""
        error = self._reasons.get(url)
        # a new one each time: an error that is raised again and again collects all its tracebacks
        return NodeUnreachable(str(error), node=error.node) if error else None

    def mind(self) -> None:
        """See to it that whatever has failed is probed until it answers."""
        if self._stopped:
            return
        for node in self._router.snapshot():
            for model in node.failed:
                if (node.url, model) not in self._probes:
                    self._probe_later(node.url, model, 0)

    async def stop(self) -> None:
        """End all looks and probes."""
        self._stopped = True
        handles = [*self._probes.values(), *self._looks.values()]
        if self._round_timer is not None:
            handles.append(self._round_timer)
        self._round_timer = None
        self._probes.clear()
        for handle in handles:
            handle.cancel()
        tasks = [handle for handle in handles if isinstance(handle, asyncio.Task)]
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- looks

    def _round(self) -> None:
        self._round_timer = None
        if not self._used and not any(self._waiting.values()):
            return
        self._used = False
        for url in self._router.nodes():
            self._look(url)
        self.mind()  # what failed may have failed on a loop that is gone with its probes
        self._round_timer = self._later(LOOK_EVERY_S, self._round)

    def _look(self, url: str) -> "asyncio.Task[NodeUnreachable | None]":
        """The look at a node that is under way, or a new one."""
        look = self._looks.get(url)
        if look is None:
            look = self._looks[url] = self._loop.create_task(self._ask(url))
            look.add_done_callback(lambda _: self._looks.pop(url, None))
        return look

    async def _ask(self, url: str) -> NodeUnreachable | None:
        """Ask a node what it has, and tell the router; why it does not answer, None where it does."""
        node = self._client(url)
        was_away = "" in self._failed(url)
        try:
            models = await node.models()
            self._router.saw(url, models=[model.name for model in models], loaded=await node.loaded())
        except NodeUnreachable as error:
            self._reasons[url] = error
            self._router.mark(url, "", healthy=False)
            self.mind()
            for limit in self._waiting.pop(url, ()):
                limit.reschedule(self._loop.time())
            return error
        except NodeError:  # it answers, though not this question: a proxy may not let it through
            self._router.mark(url, "", healthy=True)
        if was_away:
            self._hurry(url)
        return None

    # --- probes

    def _probe_later(self, url: str, model: str, tries: int) -> None:
        wait_s = wait_before_probe_s(tries)
        self._probes[url, model] = self._later(wait_s, self._begin_probe, url, model, tries)

    def _begin_probe(self, url: str, model: str, tries: int) -> None:
        self._probes[url, model] = self._loop.create_task(self._probe(url, model, tries))

    async def _probe(self, url: str, model: str, tries: int) -> None:
        failed = self._failed(url)
        if model not in failed:  # a call went well meanwhile, or the node was removed
            del self._probes[url, model]
            return
        if not model:
            well = await self._look(url) is None
        elif "" in failed:  # first the node has to come back
            well = False
        else:
            well = await self._answers(url, model)
        if well:
            del self._probes[url, model]
        else:
            self._probe_later(url, model, tries + 1)

    def _hurry(self, url: str) -> None:
        """The node is back: its models that failed need not wait as long as they did while it was away."""
        for (node, model), waiting in tuple(self._probes.items()):
            if node == url and model and isinstance(waiting, asyncio.TimerHandle):
                waiting.cancel()
                self._probe_later(node, model, 0)

    def _failed(self, url: str) -> frozenset[str]:
        return next((node.failed for node in self._router.snapshot() if node.url == url), frozenset())

    async def _answers(self, url: str, model: str) -> bool:
        try:
            await self._client(url).probe(model)
        except ModelMissing:
            pass  # it was removed there, which is no failure
        except NodeError:
            return False
        self._router.mark(url, model, healthy=True)
        return True

    def _later(self, delay_s: float, method: Callable[..., None], *given: Any) -> asyncio.TimerHandle:
        """Call a method of ours later, unless we are forgotten by then: a timer must not keep us alive."""
        ours = weakref.WeakMethod(method)

        def call() -> None:
            alive = ours()
            if alive is not None:
                alive(*given)

        return self._loop.call_later(delay_s, call)
