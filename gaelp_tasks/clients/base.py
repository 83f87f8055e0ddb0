"""The seam to Ollama: what every client can do, and what it hands out."""

import abc
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from gaelp_tasks.models import Prompt, ToolCall, Usage
from gaelp_tasks.models.capacity import Resident
from gaelp_tasks.models.frozen import Frozen, JsonObject
from gaelp_tasks.models.usage import Seconds

__all__ = ["PROBE", "BaseOllamaClient", "ChatResponse", "Embeddings", "ModelInfo"]

PROBE = "Hello"  #: what a model is asked to see whether it answers at all


class ChatResponse(Frozen):
    """One chunk of a streamed answer; the last has `done`.

    `chunk.model_copy(update={"content": "..."})` gives a changed one.
    """

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    done: bool = False
    done_reason: str | None = None  #: stop, length, load, unload; None before the last, or where not told
    usage: Usage | None = None  #: only on the last
    model: str = ""
    load_s: Seconds | None = None  #: how long the node loaded the model for this answer; only on the last
    node: str = ""  #: the server that answers; '' where the client has none
    data: JsonObject | None = None  #: what an agent made of its answer, see InvocationResult.data


class Embeddings(Frozen):
    """One vector for each text, in the order given, all of one length."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = Usage()
    model: str = ""
    node: str = ""  #: the server that answered; '' where the client has none
    cached: int = 0  #: how many of the vectors came from the cache


class ModelInfo(Frozen):
    """A model that a node has on disk."""

    name: str
    size_bytes: int = 0  #: of its files
    digest: str = ""
    family: str = ""
    capabilities: tuple[
        str, ...
    ] = ()  #: completion, embedding, tools, ...; empty where the node does not tell


class BaseOllamaClient(abc.ABC):
    """What an agent needs of a model server. A custom client defines `generate_embedding` and `chat`.

    `break` out of `async for` leaves a stream open. Whoever may leave early closes it, and that is what stops
    the model:

        async with contextlib.aclosing(client.chat("Hello")) as stream:
            async for chunk in stream:
                ...
    """

    model_name: str = ""  #: where a call names no model; '': the node's first

    @abc.abstractmethod
    async def generate_embedding(self, text: str) -> list[float]:
        """The embedding vector of one text."""

    @abc.abstractmethod
    def chat(
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
        """Stream the answer to a conversation; the last chunk has `done`.

        `model` None is the client's. `format` is "json" or a JSON schema. `stall_timeout_s` replaces the
        client's stall limit: 0 is off, None keeps it. `options` are Ollama's model options, such as
        `temperature=0.2, num_predict=64`. Raises NodeError.
        """

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> Embeddings:
        """The vectors of several texts. Raises NodeError."""
        vectors = [tuple(await self.generate_embedding(text)) for text in texts]
        return Embeddings(vectors=tuple(vectors), model=model or self.model_name)

    async def load(self, model: str | None = None) -> float:  # noqa: ARG002  a server-less client has nothing to load
        """Make sure the model is in memory; the seconds that took, 0.0 when it was there."""
        return 0.0

    async def probe(self, model: str | None = None) -> float:
        """Have the model itself answer one token; the seconds that took. Raises NodeError.

        A server that lists its models may still be unable to run one. What is not in memory is loaded for it.
        """
        started = time.monotonic()
        async with aclosing(self.chat(PROBE, model=model, num_predict=1)) as answer:
            async for _ in answer:
                pass
        return time.monotonic() - started

    async def models(self) -> tuple[ModelInfo, ...]:
        """What the node has on disk."""
        return ()

    async def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""
        return ()

    async def resident(self) -> tuple[Resident, ...]:
        """The models in memory, and how much they take where the server tells."""
        return tuple(Resident(name=name) for name in await self.loaded())

    async def version(self) -> str:
        """Of the server; '' where there is none."""
        return ""

    async def resolve(self, model: str | None, *, embeds: bool = False) -> str:  # noqa: ARG002  for those who know
        """The model that a call will use: the named one, else the client's own, else what the node offers.

        `embeds` asks for one that makes embeddings. '' where the client has no notion of models.
        """
        return model or self.model_name

    async def close(self) -> None:  # noqa: B027  a client without connections has nothing to close
        """Give back connections; closing twice is harmless."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
