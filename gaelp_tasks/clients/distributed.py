"""Several Ollama servers behind one client: a router chooses, we call, and go elsewhere when a node fails."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeVar

from gaelp_tasks.clients.base import BaseOllamaClient, ChatResponse, Embeddings, ModelInfo
from gaelp_tasks.clients.limits import Limits
from gaelp_tasks.clients.local import CHOICE_FOR_S, LocalOllamaClient
from gaelp_tasks.clients.routers import LeastLoadedRouter, router_named
from gaelp_tasks.clients.routers.base import Kind, NodeRouter, Outcome
from gaelp_tasks.clients.watch import Watch
from gaelp_tasks.clients.way import Way
from gaelp_tasks.errors import NodeError, SettingsError
from gaelp_tasks.models import Message, Prompt, as_messages
from gaelp_tasks.settings import Settings

__all__ = ["DistributedOllamaClient"]

T = TypeVar("T")
BYTES_PER_TOKEN = 4  #: roughly; a router only needs to tell short prompts from long ones


class DistributedOllamaClient(BaseOllamaClient):
    """A client of several Ollama servers; make one and keep it.

    `pool`: a NodeRouter, or the servers' URLs, alone or with their slots, and LeastLoadedRouter chooses.
    Everything else is as for LocalOllamaClient, and the same for every node. A call goes to another node when
    one fails before the first word of its answer, never after. Raises SettingsError for a pool, header, limit
    or CA file that it cannot use.
    """

    def __init__(
        self,
        model_name: str = "",
        pool: NodeRouter | Sequence[str] | Mapping[str, int] = (),
        embed_model: str = "",
        keep_alive: float | str = 300,
        *,
        limits: Limits = Limits(),  # noqa: B008  frozen
        headers: Mapping[str, str] | None = None,
        ca_file: str = "",
        num_ctx: int = 0,
    ) -> None:
        self.model_name = model_name
        self.embed_model = embed_model
        self.router = _router(pool)
        self._make: Callable[[str], LocalOllamaClient] = lambda url: LocalOllamaClient(
            "", url, "", keep_alive, limits=limits, headers=headers, ca_file=ca_file, num_ctx=num_ctx
        )
        self._clients: dict[str, LocalOllamaClient] = {}
        self._watches: dict[asyncio.AbstractEventLoop, Watch] = {}
        self._choices: dict[bool, tuple[str, float]] = {}  # embeds -> the model of a call that names none
        for url in self.router.nodes():
            self.client(url)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The client of all GAELP_OLLAMA_NODES, with the router that GAELP_NODE_ROUTER names."""
        return cls(
            settings.default_model,
            router_named(settings.node_router, settings.ollama_nodes, slots=settings.num_parallel),
            settings.embed_model,
            settings.keep_alive_s,
            limits=Limits.from_settings(settings),
            headers={name: value.get_secret_value() for name, value in settings.ollama_headers.items()},
            ca_file=settings.ollama_ca_file,
            num_ctx=settings.num_ctx,
        )

    def client(self, url: str) -> LocalOllamaClient:
        """The client of one node, for what is asked of that very node."""
        found = self._clients.get(url)
        if found is None:
            # a call on a node that was removed holds its client itself; the last one closes it
            for gone in self._clients.keys() - {*self.router.nodes()}:
                self._clients.pop(gone, None)
            found = self._clients[url] = self._make(url)
        return found

    async def chat(
        self,
        messages: Prompt,
        *,
        model: str | None = None,
        format: Any = None,  # noqa: A002  the name of Ollama's own field
        tools: Any = None,
        think: Any = None,
        stall_timeout_s: float | None = None,
        **options: Any,
    ) -> AsyncGenerator[ChatResponse, None]:
        """Stream the answer; see BaseOllamaClient. Raises InvalidInvocation for what is no model option."""
        conversation = as_messages(messages)
        way = self._way(await self.resolve(model), "chat", _tokens(conversation))
        asked = {"format": format, "tools": tools, "think": think, "stall_timeout_s": stall_timeout_s}
        while True:
            lease = await way.next()
            begun = False
            started = time.monotonic()
            try:
                node = self.client(lease.node)
                answer = node.chat(conversation, model=way.model, **asked, **options)
                async with aclosing(answer):
                    async with way.watch.guard(lease.node):
                        await _let_in(node, way.model)
                        chunk = await anext(answer)
                    first_token_s = time.monotonic() - started
                    while True:
                        begun = begun or _says(chunk)
                        if chunk.done:  # before it is handed out: its reader may not come back
                            lease.report(Outcome.DONE, first_token_s=first_token_s)
                        yield chunk
                        if chunk.done:
                            return
                        chunk = await anext(answer)
            except NodeError as error:
                way.failed(lease, error, final=begun)
            finally:
                lease.report(Outcome.LEFT)

    async def generate_embedding(self, text: str) -> list[float]:
        """The embedding vector of one text."""
        return list((await self.embed([text])).vectors[0])

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> Embeddings:
        """The vectors of several texts, by one node in one call. Raises InvalidInvocation if one is empty."""
        if not texts:
            return Embeddings(vectors=(), model=model or self.embed_model)
        name = await self.resolve(model, embeds=True)
        tokens = sum(map(len, texts)) // BYTES_PER_TOKEN

        async def ask(node: LocalOllamaClient) -> Embeddings:
            await _let_in(node, name)
            return await node.embed(texts, model=name)

        return await self._somewhere(name, "embed", ask, tokens)

    async def load(self, model: str | None = None) -> float:
        """Make sure the model is in the memory of one node; the seconds that took, 0.0 when it was there."""
        name = await self.resolve(model)
        return await self._somewhere(name, "load", lambda node: node.load(name))

    async def probe(self, model: str | None = None) -> float:
        """Have the model answer on one node; the seconds that took."""
        name = await self.resolve(model)
        return await self._somewhere(name, "load", lambda node: node.probe(name))

    async def models(self) -> tuple[ModelInfo, ...]:
        """What the nodes have on disk, each name once. Nodes that do not answer are left out."""
        found = await self._everywhere(lambda node: node.models())
        return tuple(
            {model.name: model for models in reversed(found) for model in reversed(models)}.values()
        )[::-1]

    async def loaded(self) -> tuple[str, ...]:
        """Names of the models in the memory of any node."""
        found = await self._everywhere(lambda node: node.loaded())
        return tuple(dict.fromkeys(name for names in found for name in names))

    async def version(self) -> str:
        """Of a server that answers."""
        return await self._somewhere("", "load", lambda node: node.version())

    async def resolve(self, model: str | None, *, embeds: bool = False) -> str:
        """The named model, else the client's, else the first that chats, or embeds, of any node."""
        named = model or (self.embed_model if embeds else self.model_name)
        if named:
            return named
        name, chosen_at = self._choices.get(embeds, ("", 0.0))
        if not name or time.monotonic() - chosen_at > CHOICE_FOR_S:
            name = await self._somewhere("", "load", lambda node: node.resolve(None, embeds=embeds))
            self._choices[embeds] = (name, time.monotonic())
        return name

    async def close(self) -> None:
        """End the looks at the nodes and close all connections; a later call begins anew."""
        here = asyncio.get_running_loop()
        while self._watches:
            loop, watch = self._watches.popitem()
            if loop is here:
                await watch.stop()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(watch.stop(), loop))
        for client in tuple(self._clients.values()):
            await client.close()

    def _watch(self) -> Watch:
        loop = asyncio.get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            for gone in [one for one in self._watches if one.is_closed()]:
                self._watches.pop(gone, None)
            watch = self._watches[loop] = Watch(self.router, self.client)
        watch.touch()
        return watch

    def _way(self, model: str, kind: Kind, est_tokens: int = 0) -> Way:
        return Way(self.router, self._watch(), model, kind, est_tokens)

    async def _somewhere(
        self, model: str, kind: Kind, ask: Callable[[LocalOllamaClient], Awaitable[T]], est_tokens: int = 0
    ) -> T:
        """One answer of any node that gives one."""
        way = self._way(model, kind, est_tokens)
        while True:
            lease = await way.next()
            started = time.monotonic()
            try:
                async with way.watch.guard(lease.node):
                    answer = await ask(self.client(lease.node))
                took_s = time.monotonic() - started if kind == "embed" else None
                lease.report(Outcome.DONE, first_token_s=took_s)
                return answer  # noqa: TRY300  its report may not be taken for a node's error
            except NodeError as error:
                way.failed(lease, error)
            finally:
                lease.report(Outcome.LEFT)

    async def _everywhere(self, ask: Callable[[LocalOllamaClient], Awaitable[T]]) -> list[T]:
        """The answers of all nodes that give one, in their order. Raises NodeError where none does."""
        failed = {node.url for node in self.router.snapshot() if "" in node.failed}
        urls = self.router.nodes()
        asked = [url for url in urls if url not in failed] or urls
        self._watch()
        answers = await asyncio.gather(*(ask(self.client(url)) for url in asked), return_exceptions=True)
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        bad = [answer for answer in answers if isinstance(answer, BaseException)]
        if bad and (not good or not all(isinstance(error, NodeError) for error in bad)):
            raise next((error for error in bad if not isinstance(error, NodeError)), bad[0])
        return good


async def _let_in(node: LocalOllamaClient, model: str) -> None:
    """The router may choose another node than the one where the model was loaded: its owner must know."""
    if node.loader is not None:
        await node.load(model)


def _router(pool: NodeRouter | Sequence[str] | Mapping[str, int]) -> NodeRouter:
    if isinstance(pool, NodeRouter):
        return pool
    if isinstance(pool, Sequence | Mapping) and all(isinstance(url, str) for url in pool):
        return LeastLoadedRouter(pool)
    raise SettingsError(
        f"A pool is a router or a list of node URLs, not {type(pool).__name__}: give the URLs of its nodes."
    )


def _says(chunk: ChatResponse) -> bool:
    """Whether the caller has got something that another node's answer would not continue."""
    return bool(chunk.content or chunk.thinking or chunk.tool_calls or chunk.done)


def _tokens(conversation: tuple[Message, ...]) -> int:
    return sum(len(message.content) for message in conversation) // BYTES_PER_TOKEN
