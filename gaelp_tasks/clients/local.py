"""One Ollama server."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from gaelp_tasks.clients import requests, wire
from gaelp_tasks.clients.base import PROBE, BaseOllamaClient, ChatResponse, Embeddings, ModelInfo
from gaelp_tasks.clients.limits import Limits
from gaelp_tasks.clients.transport import Transport
from gaelp_tasks.errors import (
    FirstTokenTimeout,
    InvalidInvocation,
    LoadTimeout,
    ModelMissing,
    NodeError,
    NodeUnreachable,
    RequestRefused,
    StreamStalled,
)
from gaelp_tasks.footprints import ModelShape
from gaelp_tasks.models import Prompt, as_messages
from gaelp_tasks.models.capacity import Resident
from gaelp_tasks.settings import Settings

__all__ = ["LocalOllamaClient"]

#: A model that was in memory this recently is taken to be there still, so that a chat need not ask first.
LOADED_FOR_S = 60.0
#: The node's first model is asked for again after this long.
CHOICE_FOR_S = 30.0


class LocalOllamaClient(BaseOllamaClient):
    """A client of one Ollama server; pools its connections, so make one and keep it.

    `model_name`, `embed_model`: '' is the node's first that chats, or embeds. `api_base` may have a path
    prefix. `keep_alive`: seconds a model stays in memory unused, negative for ever, 0 unloads at once, or a
    text such as "5m". `num_ctx`: context tokens, the same in every call because a change reloads the model; 0
    leaves it to the server. Raises SettingsError for an address, header, limit or CA file it cannot use.
    """

    def __init__(
        self,
        model_name: str = "",
        api_base: str = "http://127.0.0.1:11434",
        embed_model: str = "",
        keep_alive: float | str = 300,
        *,
        limits: Limits = Limits(),  # noqa: B008  frozen
        headers: Mapping[str, str] | None = None,
        ca_file: str = "",
        num_ctx: int = 0,
    ) -> None:
        self.model_name = model_name
        self.api_base = api_base
        self.embed_model = embed_model
        self.keep_alive = keep_alive
        self.limits = limits
        self.num_ctx = num_ctx
        self._transport = Transport(api_base, connect_s=limits.connect_s, headers=headers, ca_file=ca_file)
        self._loaded_at: dict[str, float] = {}  # canonical name -> when it was last known to be in memory
        self._choices: dict[bool, tuple[str, float]] = {}  # embeds -> the node's first model, and since when
        self._shown: dict[str, ModelInfo] = {}  # digest -> what /api/show said
        self._shapes: dict[str, ModelShape] = {}  # digest -> the same, for memory
        #: the node's owner, who brings a model into memory that is not there; None: this client does it
        self.loader: Callable[[str], Awaitable[None]] | None = None
        #: whether the node's owner has just seen a model of ours in memory: then the server is not asked
        self.is_there: Callable[[str], bool] = lambda _: False
        self.moves: Callable[[str], bool] = lambda _: False  #: the same of one that is listed and no use now

    @classmethod
    def from_settings(cls, settings: Settings, url: str) -> Self:
        """The client of one of GAELP_OLLAMA_NODES."""
        return cls(
            settings.default_model,
            url,
            settings.embed_model,
            settings.keep_alive_s,
            limits=Limits.from_settings(settings),
            headers={name: value.get_secret_value() for name, value in settings.ollama_headers.items()},
            ca_file=settings.ollama_ca_file,
            num_ctx=settings.num_ctx,
        )

    @property
    def node(self) -> str:
        """The server's address without credentials, as errors and logs show it."""
        return self._transport.node

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
        name = await self.resolve(model)
        payload = requests.body(
            requests.chat_request(
                conversation,
                model=name,
                keep_alive=requests.keep_alive_value(self.keep_alive),
                num_ctx=self.num_ctx,
                format=format,
                tools=tools,
                think=think,
                options=options,
            )
        )
        waits = _Waits(self.limits, stall_timeout_s, loaded=self._is_loaded(name))
        decoder = wire.ChatDecoder(self.node)
        try:
            opened = self._transport.stream("/api/chat", payload, until=waits.until, model=name)
            async with opened as stream:
                while not decoder.done:
                    data = await stream.read(waits.until)
                    chunk = None
                    for chunk in decoder.feed(data) if data else decoder.end():
                        if chunk.done:
                            self._loaded_at[wire.canonical(name)] = time.monotonic()
                            await stream.drain()
                        yield chunk
                    if chunk is not None:  # bytes without a whole chunk are no progress
                        waits.renew()
        except TimeoutError:
            raise waits.late(self.node, name) from None

    async def generate_embedding(self, text: str) -> list[float]:
        """The embedding vector of one text."""
        return list((await self.embed([text])).vectors[0])

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> Embeddings:
        """The vectors of several texts, in one call. Raises InvalidInvocation if one is empty."""
        if not texts:
            return Embeddings(vectors=(), model=model or self.embed_model)
        if not all(texts):
            raise InvalidInvocation("A text to embed is empty.")
        name = await self.resolve(model, embeds=True)
        limit_s = self.limits.first_token_s + (0.0 if self._is_loaded(name) else self.limits.load_s)
        try:
            answer = await self._post("/api/embed", {"input": list(texts)}, name, limit_s)
        except TimeoutError:
            raise FirstTokenTimeout(
                f"{self.node} did not embed {len(texts)} texts with '{name}' within {limit_s:g} s: send "
                "fewer at once, or raise GAELP_FIRST_TOKEN_TIMEOUT_S.",
                node=self.node,
            ) from None
        self._loaded_at[wire.canonical(name)] = time.monotonic()
        return wire.embeddings(answer, texts, self.node)

    async def load(self, model: str | None = None) -> float:
        """Make sure the model is in memory; the seconds that took, 0.0 when it was there.

        Leaving early would abort the load for everybody who waits for it, so let it have all of
        `limits.load_s`. Raises LoadTimeout.
        """
        name = await self.resolve(model)
        listed = wire.canonical(name)
        if not self.is_there(listed) and (not await self._has(listed) or self.moves(listed)):
            started = time.monotonic()
            await (self.loader or self.bring_in)(name)
            self._loaded_at[listed] = time.monotonic()
            return self._loaded_at[listed] - started
        self._loaded_at[listed] = time.monotonic()
        return 0.0

    def disown(self) -> None:
        """The node has no owner any more: this client loads by itself."""
        self.loader, self.is_there, self.moves = None, lambda _: False, lambda _: False

    async def bring_in(self, name: str) -> None:
        """Have the server load a model; whoever leaves early aborts the load. Raises LoadTimeout."""
        embeds = wire.is_embedding(await self._known(ModelInfo(name=name)))
        nothing: dict[str, Any] = {"input": ""} if embeds else {"stream": False}
        if not self.keep_alive:  # with nothing to do, that asks Ollama to unload it
            nothing["keep_alive"] = LOADED_FOR_S
        path = "/api/embed" if embeds else "/api/generate"
        try:
            await self._post(path, nothing, name, self.limits.load_s)
        except TimeoutError:
            raise LoadTimeout(
                f"{self.node} did not load '{name}' within {self.limits.load_s:g} s: look at its log, or "
                "raise GAELP_LOAD_TIMEOUT_S.",
                node=self.node,
            ) from None

    async def unload(self, name: str) -> None:
        """Have the server let a model go once nothing runs on it. Raises NodeError."""
        self._loaded_at.pop(wire.canonical(name), None)
        request = {"model": name, "keep_alive": 0, "stream": False}
        try:
            await self._ask("/api/generate", request, name)
        except RequestRefused:  # some servers generate nothing with an embedding model, not even that
            await self._ask("/api/embed", request | {"input": ""}, name)

    async def probe(self, model: str | None = None) -> float:
        """Have the model answer: one token, or the vector of one word where it makes those."""
        name = await self.resolve(model)
        if not wire.is_embedding(await self._known(ModelInfo(name=name))):
            return await super().probe(name)
        started = time.monotonic()
        await self.embed([PROBE], model=name)
        return time.monotonic() - started

    async def models(self) -> tuple[ModelInfo, ...]:
        """What the node has on disk, the newest first."""
        return wire.models(await self._ask("/api/tags"), self.node)

    async def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""
        return tuple(model.name for model in await self.resident())

    async def resident(self) -> tuple[Resident, ...]:
        """The models in memory, and how much each takes."""
        return tuple(
            Resident(name=model.name, size_bytes=model.size, vram_bytes=model.size_vram)
            for model in wire.running(await self._ask("/api/ps"), self.node)
        )

    async def shape(self, model: str | None = None) -> ModelShape:
        """What its memory depends on; asked for once for each digest. Raises ModelMissing."""
        listed = wire.canonical(await self.resolve(model))
        for info in await self.models():
            if wire.canonical(info.name) != listed:
                continue
            key = info.digest or info.name
            if key not in self._shapes:
                self._shapes[key] = await self._shape(info)
            return self._shapes[key].model_copy(update={"name": info.name})  # one digest may have two names
        raise ModelMissing(
            f"{self.node} has no model '{listed}'; pull it there: gaelp models pull {listed}.", node=self.node
        )

    async def version(self) -> str:
        """Of the server."""
        return wire.version(await self._ask("/api/version"), self.node)

    async def resolve(self, model: str | None, *, embeds: bool = False) -> str:
        """The named model, else the client's, else the node's first that chats, or embeds.

        Raises ModelMissing where it has none.
        """
        named = model or (self.embed_model if embeds else self.model_name)
        if named:
            return named
        name, chosen_at = self._choices.get(embeds, ("", 0.0))
        if not name or time.monotonic() - chosen_at > CHOICE_FOR_S:
            name = await self._first(embeds=embeds)
            self._choices[embeds] = (name, time.monotonic())
        return name

    async def close(self) -> None:
        """Close the pooled connections; a later call opens new ones."""
        await self._transport.close()

    async def _first(self, *, embeds: bool) -> str:
        for info in await self.models():
            if wire.is_embedding(await self._known(info)) is embeds:
                return info.name
        kind = "embedding model" if embeds else "model that chats"
        example = "nomic-embed-text" if embeds else "llama3.2"
        raise ModelMissing(
            f"{self.node} has no {kind}; pull one there: gaelp models pull {example}.", node=self.node
        )

    async def _known(self, info: ModelInfo) -> ModelInfo:
        """The model with its capabilities, asked for once where the list does not tell them."""
        if info.capabilities:
            return info
        key = info.digest or info.name
        if key not in self._shown:
            try:
                answer = await self._ask("/api/show", {"model": info.name}, info.name)
            except (ModelMissing, RequestRefused):
                return info  # a server without /api/show, or a model removed meanwhile: its family must do
            self._shown[key] = wire.shown(answer, info, self.node)
        return self._shown[key]

    async def _shape(self, info: ModelInfo) -> ModelShape:
        asked = {"model": info.name}
        shape = wire.shape(await self._ask("/api/show", asked, info.name), info, self.node)
        if shape is not None:
            return shape
        # with the vocabulary, megabytes: only where it must be
        answer = await self._ask("/api/show", asked | {"verbose": True}, info.name)
        return wire.whole_shape(answer, info, self.node)

    async def _has(self, listed: str) -> bool:
        """In memory, and with our context: another one would be loaded anew."""
        models = wire.running(await self._ask("/api/ps"), self.node)
        return any(
            wire.canonical(model.name) == listed and self.num_ctx in {0, model.context_length}
            for model in models
        )

    def _is_loaded(self, name: str) -> bool:
        seen = self._loaded_at.get(wire.canonical(name))
        return seen is not None and time.monotonic() - seen < LOADED_FOR_S

    async def _post(self, path: str, request: Mapping[str, Any], model: str, limit_s: float) -> bytes:
        """A call that needs the model in memory. Raises TimeoutError after `limit_s`."""
        whole = {"model": model, "keep_alive": requests.keep_alive_value(self.keep_alive), **request}
        if self.num_ctx > 0:
            whole["options"] = {"num_ctx": self.num_ctx}
        until = asyncio.get_running_loop().time() + limit_s
        return await self._transport.ask(path, requests.body(whole), until=until, model=model)

    async def _ask(self, path: str, request: Mapping[str, Any] | None = None, model: str = "") -> bytes:
        """A small question, which a node answers at once."""
        limit_s = self.limits.answer_s
        until = asyncio.get_running_loop().time() + limit_s
        payload = None if request is None else requests.body(request)
        try:
            return await self._transport.ask(path, payload, until=until, model=model)
        except TimeoutError:
            raise NodeUnreachable(
                f"{self.node} did not answer {path} within {limit_s:g} s: is it overloaded or hung?",
                node=self.node,
            ) from None


class _Waits:
    """Until when a chat waits: for its first chunk, then for each next one, and never beyond its total."""

    def __init__(self, limits: Limits, stall_timeout_s: float | None, *, loaded: bool) -> None:
        self._clock = asyncio.get_running_loop().time
        self._stall_s = limits.stall_s if stall_timeout_s is None else stall_timeout_s
        # not known to be in memory: the node loads it first, and leaving would abort that load
        self._first_s = limits.first_token_s + (0.0 if loaded else limits.load_s)
        self._total_s = limits.total_s
        started = self._clock()
        self._end = started + (limits.total_s or math.inf)
        self.until: float | None = min(started + self._first_s, self._end)
        self.begun = False

    def renew(self) -> None:
        """A chunk came: from now on only the next one is waited for."""
        self.begun = True
        until = min(self._clock() + (self._stall_s or math.inf), self._end)
        self.until = until if until < math.inf else None

    def late(self, node: str, model: str) -> NodeError:
        """The error that a wait beyond `until` is."""
        if self._clock() >= self._end:
            words, setting = f"did not finish its answer within {self._total_s:g} s", "total_s"
        elif self.begun:
            words, setting = f"sent nothing for {self._stall_s:g} s", "GAELP_STALL_TIMEOUT_S"
        else:
            words, setting = f"sent no first token within {self._first_s:g} s", "GAELP_FIRST_TOKEN_TIMEOUT_S"
        kind = StreamStalled if self.begun else FirstTokenTimeout
        return kind(f"{node} {words} ('{model}'): try again, or raise {setting}.", node=node)
