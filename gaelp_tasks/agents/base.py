"""What every agent does: bring the input to one form, put the system prompt first, stream the answer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from gaelp_tasks.clients.base import BaseOllamaClient, ChatResponse
from gaelp_tasks.models import Message, Prompt, as_messages, with_system
from gaelp_tasks.runtime import shared_runtime

__all__ = ["BaseAgent"]


class BaseAgent:
    """An agent on a client. Subclass it with a `system_prompt`, and override `run` or `process` to do more.

    `options` of every method are those of `BaseOllamaClient.chat`: `model`, `format`, `tools`, `think`,
    `stall_timeout_s`, and Ollama's model options.
    """

    system_prompt: str | None = None  #: opens each conversation that does not open with a system message

    def __init__(self, client: BaseOllamaClient, *, system_prompt: str | None = None) -> None:
        self.client = client
        if system_prompt is not None:
            self.system_prompt = system_prompt

    async def run(self, messages: Prompt, **options: Any) -> AsyncGenerator[ChatResponse, None]:
        """Stream the answer. Close the stream when leaving early (contextlib.aclosing): that stops the model.

        Raises InvalidInvocation for an input of another form, NodeError.
        """
        conversation = with_system(as_messages(messages), self.system_prompt)
        async with aclosing(self.process(conversation, **options)) as answer:
            async for chunk in answer:
                yield chunk

    def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse, None]:
        """Answer a conversation that is ready to send; one call of the model unless overridden."""
        return self.client.chat(messages, **options)

    async def get_full_response(self, messages: Prompt, **options: Any) -> str:
        """The whole text of the answer, without the model's thinking."""
        async with aclosing(self.run(messages, **options)) as answer:
            return "".join([chunk.content async for chunk in answer])

    def run_sync(self, messages: Prompt, **options: Any) -> str:
        """`get_full_response` for synchronous code. Raises RuntimeError on the shared loop itself."""
        return shared_runtime().run(self.get_full_response(messages, **options))

    async def close(self) -> None:
        """Close the client."""
        await self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
