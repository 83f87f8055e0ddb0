"""A model of one text: it always says that, and goes on with it from any beginning that it is given."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from gaelp_tasks.clients import BaseOllamaClient, ChatResponse
from gaelp_tasks.clients.base import ModelInfo
from gaelp_tasks.errors import RequestRefused
from gaelp_tasks.models import Message, Prompt, Usage, as_messages
from gaelp_tasks.tasks.resuming import QUESTION

TEXT = "Once upon a time there was a queue, and nobody liked to stand in it but one. It was the last of them."


class Talker(BaseOllamaClient):
    """`stop_at`: how many pieces of a text are out when it waits for ever; None: it does not.

    `exact` False is a model whose continuations are others, `refuses` a node that takes none.
    """

    def __init__(self, *pieces: str, digest: str = "d1", model_name: str = "talker") -> None:
        self.model_name = model_name
        self.pieces = pieces or tuple(f" {word}" for word in TEXT.split())
        self.digest = digest
        self.stop_at: int | None = None
        self.exact = True
        self.refuses = False
        self.waits = asyncio.Event()  #: it has come to that place
        self.asked: list[tuple[tuple[Message, ...], dict[str, Any]]] = []  #: what it was asked but for probes
        self.probes = 0  #: chats of a probe

    async def chat(self, messages: Prompt, **options: Any) -> AsyncGenerator[ChatResponse, None]:
        conversation = as_messages(messages)
        begun = conversation[-1].content if conversation[-1].role == "assistant" else ""
        pieces, stop_at = self.pieces, self.stop_at
        if conversation[0].content == QUESTION:
            self.probes += 1
            pieces, stop_at = tuple(f"number {number}\n" for number in range(40)), None
        else:
            self.asked.append((conversation, options))
        if begun and self.refuses:
            raise RequestRefused("no assistant may begin")
        at = next(at for at in range(len(pieces) + 1) if "".join(pieces[:at]) == begun)
        limit = options.get("num_predict") or len(pieces)
        for number, piece in enumerate(pieces[at : at + limit]):
            if stop_at is not None and at + number == stop_at:
                self.waits.set()
                await asyncio.Event().wait()
            yield ChatResponse(content=piece.upper() if begun and not self.exact else piece)
        said = min(limit, len(pieces) - at)
        words = sum(len(message.content.split()) for message in conversation if message.role != "assistant")
        yield ChatResponse(
            done=True,
            done_reason="length" if said < len(pieces) - at else "stop",
            usage=Usage(prompt_tokens=words + at, completion_tokens=said),
        )

    async def generate_embedding(self, text: str) -> list[float]:
        return [float(len(text))]

    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(name=self.model_name, digest=self.digest),)
