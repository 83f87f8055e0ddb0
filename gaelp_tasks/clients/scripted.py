"""The fake: a client that plays a script, for tests of whatever needs a model's answer."""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gaelp_tasks.clients.base import BaseOllamaClient, ChatResponse, Embeddings, ModelInfo
from gaelp_tasks.errors import InvalidInvocation, ModelMissing
from gaelp_tasks.models import Message, Prompt, Usage, as_messages

__all__ = ["Asked", "ScriptedClient", "Step"]

#: A text is one token; an Event, or what a function returns, is awaited; an error is raised; a chunk is sent.
Step = str | ChatResponse | asyncio.Event | Exception | Callable[[], Awaitable[object]]

DIMENSIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one chat was asked."""

    messages: tuple[Message, ...]
    model: str
    format: Any = None
    tools: Any = None
    think: Any = None
    stall_timeout_s: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


class ScriptedClient(BaseOllamaClient):
    """Plays one script for each chat, in order; the last script again for every later chat.

    After its steps a script ends with a `done` chunk, unless it sent one itself: `done_reason` "stop", or
    "length" where the option `num_predict` cut it; usage counts the words asked and the tokens sent. It has
    one model; another name raises ModelMissing.

        client = ScriptedClient(["Hel", gate, "lo"], [NodeBusy("full")])
    """

    def __init__(
        self,
        *scripts: Sequence[Step],
        model_name: str = "scripted",
        load_s: float = 0.0,
        usage: Usage | None = None,
    ) -> None:
        self.model_name = model_name
        self.asked: list[Asked] = []
        self.embedded: list[tuple[str, ...]] = []
        self.loads: list[str] = []
        self.closed = asyncio.Event()  #: a chat was left before its end
        self.is_closed = False  #: close() was called
        self._scripts = scripts or (("Hello", ",", " world"),)
        self._load_s = load_s
        self._usage = usage
        self._in_memory = False

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
        """Play the next script."""
        conversation = as_messages(messages)
        name = await self.resolve(model)
        self.asked.append(
            Asked(
                messages=conversation,
                model=name,
                format=format,
                tools=tools,
                think=think,
                stall_timeout_s=stall_timeout_s,
                options=options,
            )
        )
        script = self._scripts[min(len(self.asked), len(self._scripts)) - 1]
        self._in_memory = True
        done = False
        try:
            async for chunk in self._play(script, conversation, options.get("num_predict")):
                done = chunk.done
                yield chunk
        except (GeneratorExit, asyncio.CancelledError):
            if not done:
                self.closed.set()
            raise

    async def _play(
        self, script: Sequence[Step], conversation: tuple[Message, ...], num_predict: int | None
    ) -> AsyncGenerator[ChatResponse, None]:
        sent = 0
        for step in script:
            match step:
                case Exception():
                    raise step
                case asyncio.Event():
                    await step.wait()
                case ChatResponse():
                    yield step
                    if step.done:
                        return
                case str() if sent == num_predict:
                    break
                case str():
                    sent += 1
                    yield ChatResponse(content=step, model=self.model_name)
                case _:
                    await step()
        words = sum(len(message.content.split()) for message in conversation)
        yield ChatResponse(
            done=True,
            done_reason="length" if sent == num_predict else "stop",
            usage=self._usage or Usage(prompt_tokens=words, completion_tokens=sent),
            model=self.model_name,
            load_s=0.0,
        )

    async def generate_embedding(self, text: str) -> list[float]:
        """A vector of length 1 that depends on the text alone."""
        return list((await self.embed([text])).vectors[0])

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> Embeddings:
        """The vectors of several texts."""
        if not all(texts):
            raise InvalidInvocation("A text to embed is empty.")
        name = await self.resolve(model, embeds=True)
        self.embedded.append(tuple(texts))
        words = sum(len(text.split()) for text in texts)
        vectors = tuple(_vector(text) for text in texts)
        return Embeddings(vectors=vectors, usage=Usage(prompt_tokens=words), model=name)

    async def load(self, model: str | None = None) -> float:
        """Takes no time; says `load_s` the first time."""
        self.loads.append(await self.resolve(model))
        was, self._in_memory = self._in_memory, True
        return 0.0 if was else self._load_s

    async def models(self) -> tuple[ModelInfo, ...]:
        """Its one model."""
        return (ModelInfo(name=self.model_name, capabilities=("completion", "embedding")),)

    async def loaded(self) -> tuple[str, ...]:
        """Its one model, once loaded or used."""
        return (self.model_name,) if self._in_memory else ()

    async def version(self) -> str:
        """Of the fake."""
        return "scripted"

    async def resolve(self, model: str | None, *, embeds: bool = False) -> str:  # noqa: ARG002  its model does both
        """Its one model. Raises ModelMissing for another name."""
        if model not in {None, "", self.model_name}:
            raise ModelMissing(f"The scripted client has no model '{model}': name '{self.model_name}'.")
        return self.model_name

    async def close(self) -> None:
        """Remember it."""
        self.is_closed = True


def _vector(text: str) -> tuple[float, ...]:
    digest = hashlib.sha256(text.encode()).digest()
    numbers = [byte - 127.5 for byte in digest[:DIMENSIONS]]
    length = math.hypot(*numbers)
    return tuple(number / length for number in numbers)
