"""What every agent does: bring the input to one form, put the system prompt first, stream the answer."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from gaelp_tasks.agents.answers import Answer, collect
from gaelp_tasks.agents.modes import Mode, in_steps
from gaelp_tasks.agents.turns import Limits, offer, take_turns
from gaelp_tasks.clients.base import BaseOllamaClient, ChatResponse
from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models import Message, Prompt, as_messages, with_system
from gaelp_tasks.models.shape import Shape, as_format, fit
from gaelp_tasks.registry import no_such_mode, takes_no_documents
from gaelp_tasks.runtime import shared_runtime

__all__ = ["BaseAgent"]

S = TypeVar("S", bound=Shape)


class BaseAgent:
    """An agent on a client. Subclass it with a `system_prompt`, and override `run` or `process` to do more.

    `options` of every method are those of `BaseOllamaClient.chat`: `model`, `format`, `tools`, `think`,
    `stall_timeout_s`, and Ollama's model options. Beyond a client's, `format` may be a pydantic class, and
    `tools` may hold names of registered tools and functions: the agent runs what the model calls of them.
    """

    system_prompt: str | None = None  #: opens each conversation that does not open with a system message
    modes: ClassVar[Mapping[str, Mode]] = {}  #: other ways to answer, for `mode=`
    tool_rounds: int = 8  #: turns with tool calls before the model must answer without
    tool_timeout_s: float = 60.0  #: for one call of a tool
    #: its usual answer is one call of the model, whose text it passes on as it is: an interrupted run can go
    #: on from that. What a class says here holds for itself, not for its subclasses
    resumable: ClassVar[bool] = False

    def __init__(self, client: BaseOllamaClient, *, system_prompt: str | None = None) -> None:
        self.client = client
        if system_prompt is not None:
            self.system_prompt = system_prompt

    async def run(
        self, messages: Prompt, *, mode: str | None = None, **options: Any
    ) -> AsyncGenerator[ChatResponse, None]:
        """Stream the answer. Close the stream when leaving early (contextlib.aclosing): that stops the model.

        `mode` is one of the agent's `modes`, None its usual way. Raises InvalidInvocation for an input of
        another form, NodeError.
        """
        way = self._mode(mode)
        conversation = with_system(as_messages(messages), way.system_prompt or self.system_prompt)
        if options.get("format") is not None:
            options["format"] = as_format(options["format"])
        async with aclosing(in_steps(self.process, conversation, way.steps, options)) as answer:
            async for chunk in answer:
                yield chunk

    def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse, None]:
        """Answer a conversation that is ready to send: by one call of the model, more with tools.

        Override it to answer otherwise, and call this one from there to have tools. Raises as `run`.
        """
        if options.pop("documents", None):
            raise InvalidInvocation(takes_no_documents(type(self).__name__))
        if options.get("tools"):
            offered = offer(options["tools"])
            if offered.here:
                del options["tools"]
                limits = Limits(rounds=self.tool_rounds, timeout_s=self.tool_timeout_s)
                return take_turns(self.client, messages, offered, limits, **options)
        return self.client.chat(messages, **options)

    async def get_response(self, messages: Prompt, **options: Any) -> Answer:
        """The whole answer: text, thinking, tool calls, usage, and what the agent made of it."""
        return await collect(self.run(messages, **options))

    async def get_full_response(self, messages: Prompt, **options: Any) -> str:
        """The whole text of the answer, without the model's thinking."""
        return (await self.get_response(messages, **options)).text

    async def get_parsed(self, messages: Prompt, shape: type[S], /, **options: Any) -> S:
        """The answer as an instance of a pydantic class, to whose schema the model is held.

        Raises AnswerUnfit where the text does not fit, as one that was cut.
        """
        return fit(await self.get_full_response(messages, format=shape, **options), shape)

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

    def _mode(self, name: str | None) -> Mode:
        if name is None:
            return Mode()
        if name not in self.modes:
            raise InvalidInvocation(no_such_mode(name, type(self).__name__, self.modes))
        return self.modes[name]
