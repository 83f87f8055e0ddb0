"""The work of a chat: an agent's answer, streamed as it comes."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.agents.turns import tool_named
from gaelp_tasks.cancellation import Cancelled, Reason
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.errors import RequestRefused
from gaelp_tasks.models import Message
from gaelp_tasks.models.frozen import JsonObject, well_formed
from gaelp_tasks.models.invocation import Invocation, InvocationResult, StopReason
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.registry import PARSERS, agent_class
from gaelp_tasks.streams import TokenStream
from gaelp_tasks.tasks.parsing import parsed
from gaelp_tasks.tasks.recalling import KnownAnswer
from gaelp_tasks.tasks.resources import Resources
from gaelp_tasks.tasks.resuming import CannotResume, continued, learn, options_left
from gaelp_tasks.tasks.walk import Run

__all__ = ["Generation"]


class Generation:
    """An answer in the making; what has come so far is its partial text."""

    def __init__(self, run: Run, asked: Invocation, at: Resources) -> None:
        self.model = ""
        self._run = run
        self._asked = asked
        self._at = at
        self._tally = at.tally(run.id)
        self._pieces: list[str] = []
        self._size_bytes = 0
        self._tool_calls: list[dict[str, Any]] = []
        self._data: JsonObject = {}
        self._usage = Usage()
        self._known = KnownAnswer(asked, at)
        self._cached = False

    @property
    def begun(self) -> bool:
        """A first token has come."""
        return self._run.first_token_s is not None

    def facts(self) -> dict[str, Any]:
        """Agent, tier and the model asked for."""
        asked = self._asked
        return {"agent": asked.agent, "model": asked.model, "tier": asked.tier, "priority": asked.priority}

    async def resolve(self) -> str:
        """The model asked for, else the client's default, else the node's first; as its start told."""
        way = self._run.way
        return await self._at.client.resolve(way.model if way else self._asked.model)

    async def recall(self, stream: TokenStream) -> bool:
        """Give out the exact answer, where it is known, and none of it is out yet."""
        if self._run.earlier is not None:
            return False
        found = await self._known.recall(self.model)
        if found is None:
            return False
        self._cached = True
        self._take(ChatResponse(content=found["text"], data=found["data"]), stream)
        self._tool_calls += found["tool_calls"]
        return True

    async def load(self) -> float:
        """Have the model in memory."""
        return await self._at.client.load(self.model)

    async def do(self, stream: TokenStream) -> StopReason:
        """Stream the agent's answer. Raises NodeError, StreamFenced and whatever the agent raises.

        Raises CannotResume where the model turns out not to go on from what is in the stream.
        """
        asked = self._asked
        agent: BaseAgent = agent_class(asked.agent, self._at.settings)(self._at.client)
        parser = PARSERS.find(asked.parser, self._at.settings) if asked.parser else None
        try:
            stop_reason = await self._answer(agent, stream)
        except RequestRefused as refused:
            if self._run.earlier is None or self.begun:
                raise
            raise CannotResume(f"The node does not go on from the text: {refused}") from refused
        if not self._tool_calls:
            whole = stop_reason == "stop"
            self._data |= await parsed(self._text, asked, parser, whole=whole)
        return stop_reason

    async def _answer(self, agent: BaseAgent, stream: TokenStream) -> StopReason:
        """Stream the answer, or what is still to come of it."""
        given = await self._given(agent)
        if given is None:
            return "length"
        messages, options = given
        limit_bytes = int(self._at.settings.max_output_bytes)
        said = agent.run(messages, **self._arguments(options))
        if self._asked.most_tokens is not None:
            said = self._paid(said, self._asked.most_tokens)
        async with aclosing(said) as chunks:
            async for chunk in chunks:
                self._take(chunk, stream)
                self._run.cancellation.check()
                await stream.room()
                if self._size_bytes > limit_bytes or chunk.done_reason == "length":
                    return "length"
        return "stop"

    async def _paid(
        self, said: AsyncGenerator[ChatResponse], most_tokens: int
    ) -> AsyncGenerator[ChatResponse]:
        """What may be told of it, by all claims together; the next token is not, and cuts the run."""
        async with aclosing(said) as chunks:
            async for chunk in chunks:
                if (chunk.content or chunk.thinking) and self._tally.tokens >= most_tokens:
                    raise Cancelled(Reason.BUDGET)
                yield chunk

    async def _given(self, agent: BaseAgent) -> tuple[Sequence[Message], Mapping[str, Any]] | None:
        """The conversation and the model's options; None where the text is as long as it may be already."""
        asked, run, at = self._asked, self._run, self._at
        options = asked.options or {}
        if run.earlier is None or run.way is None:
            return asked.input, options
        text = run.earlier.text
        self._size_bytes = len(text.encode())
        if options_left(options, run.tokens) is None or self._size_bytes > int(at.settings.max_output_bytes):
            return None
        if not await learn(at, run.way, at.client):
            raise CannotResume(f"The model '{self.model}' does not go on exactly from a text that was cut.")
        messages = continued(asked.input, text)
        # several tokens come as one piece: of one character, or held back as the beginning of a stop sequence
        if not text.isascii() or "<" in text or "stop" in options:
            run.tokens = max(run.tokens, await self._longer_by(agent, messages))
            run.earlier = replace(run.earlier, tokens=run.tokens)
        self._tally.tokens += run.tokens
        left = options_left(options, run.tokens)
        return None if left is None else (messages, left)

    async def _longer_by(self, agent: BaseAgent, messages: Sequence[Message]) -> int:
        """How many tokens these messages have more than those that were asked, as the node counts prompts."""
        counts = []
        for asked in (self._asked.input, messages):
            options = {**(self._asked.options or {}), "num_predict": 1}
            async with aclosing(agent.run(asked, **self._arguments(options))) as chunks:
                counts.append(sum([chunk.usage.prompt_tokens async for chunk in chunks if chunk.usage]))
        return counts[1] - counts[0]

    @property
    def _text(self) -> str:
        """The answer so far, what earlier claims wrote of it included."""
        earlier = self._run.earlier
        return "".join([earlier.text if earlier else "", *self._pieces])

    def _arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Of the agent's `run`; what only some agents take is given only where it was asked for."""
        asked, settings = self._asked, self._at.settings
        for_some = {"mode": asked.mode, "documents": asked.documents}
        return {
            "model": self.model,
            "format": asked.format,
            "tools": [tool_named(tool, settings) for tool in asked.tools] if asked.tools else None,
            "think": asked.think,
            "stall_timeout_s": asked.stall_timeout_s,
            **{name: value for name, value in for_some.items() if value is not None},
            **options,
        }

    def _take(self, chunk: ChatResponse, stream: TokenStream) -> None:
        if self._run.first_token_s is None and (chunk.content or chunk.thinking or chunk.tool_calls):
            self._run.first_token_s = self._at.tick() - self._run.started
            if not self._cached:
                self._at.demand.writing.add(self._run.id)
        content, thinking = well_formed(chunk.content), well_formed(chunk.thinking)
        self._tally.count(chunk.node, chunk.model, bool(content) + bool(thinking))
        if content:
            self._pieces.append(content)
            tokens = 0 if self._cached else 1
            self._run.tokens += tokens
            stream.write(content, tokens=tokens)
        if thinking:
            stream.think(thinking)
        if chunk.tool_calls:
            self._tool_calls += [call.model_dump(mode="json") for call in chunk.tool_calls]
        self._data |= chunk.data or {}
        self._size_bytes += len(content.encode()) + len(thinking.encode())
        if chunk.usage is not None:
            self._usage += chunk.usage

    def usage(self) -> Usage:
        """What it cost, each token once; a cut one counts the pieces that came, for the node never told.

        A node that went on counts the text before as prompt.
        """
        before = self._run.earlier.tokens if self._run.earlier else 0
        told = self._usage
        written = before + told.completion_tokens if told.completion_tokens else self._run.tokens
        return Usage(prompt_tokens=max(0, told.prompt_tokens - before), completion_tokens=written)

    def result(self, stop_reason: StopReason) -> InvocationResult:
        """The answer so far."""
        return InvocationResult(
            id=self._run.id,
            agent=self._asked.agent,
            model=self.model,
            node=(self._tally.node or self._at.node) if self.model else "",
            tier=self._asked.tier,
            priority=self._asked.priority,
            text=self._text,
            tool_calls=tuple(self._tool_calls),
            stop_reason=stop_reason,
            attempts=self._run.attempt,
            usage=self.usage(),
            timings=self._run.timings(self._at),
            data=self._data,
            cached=self._cached,
        )

    async def keep(self, result: InvocationResult) -> None:
        """Remember a whole answer."""
        if not self._cached:
            await self._known.keep(result)
