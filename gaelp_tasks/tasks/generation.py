"""The work of a chat: an agent's answer, streamed as it comes."""

from contextlib import aclosing
from typing import Any

from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.agents.turns import tool_named
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.models.frozen import JsonObject, well_formed
from gaelp_tasks.models.invocation import Invocation, InvocationResult, StopReason
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.registry import PARSERS, agent_class
from gaelp_tasks.streams import TokenStream
from gaelp_tasks.tasks.parsing import parsed
from gaelp_tasks.tasks.recalling import KnownAnswer
from gaelp_tasks.tasks.resources import Resources
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
        """The model asked for, else the client's default, else the node's first."""
        return await self._at.client.resolve(self._asked.model)

    async def recall(self, stream: TokenStream) -> bool:
        """Give out the exact answer, where it is known."""
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
        """Stream the agent's answer. Raises NodeError, StreamFenced and whatever the agent raises."""
        asked = self._asked
        agent: BaseAgent = agent_class(asked.agent, self._at.settings)(self._at.client)
        parser = PARSERS.find(asked.parser, self._at.settings) if asked.parser else None
        answer = agent.run(asked.input, **self._arguments())
        limit_bytes = int(self._at.settings.max_output_bytes)
        stop_reason: StopReason = "stop"
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                self._take(chunk, stream)
                self._run.cancellation.check()
                await stream.room()
                if self._size_bytes > limit_bytes or chunk.done_reason == "length":
                    stop_reason = "length"
                    break
        if not self._tool_calls:
            whole = stop_reason == "stop"
            self._data |= await parsed("".join(self._pieces), asked, parser, whole=whole)
        return stop_reason

    def _arguments(self) -> dict[str, Any]:
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
            **(asked.options or {}),
        }

    def _take(self, chunk: ChatResponse, stream: TokenStream) -> None:
        if self._run.first_token_s is None and (chunk.content or chunk.thinking or chunk.tool_calls):
            self._run.first_token_s = self._at.tick() - self._run.started
        content, thinking = well_formed(chunk.content), well_formed(chunk.thinking)
        self._tally.count(chunk.node, chunk.model, bool(content) + bool(thinking))
        if content:
            self._pieces.append(content)
            stream.write(content)
        if thinking:
            stream.think(thinking)
        if chunk.tool_calls:
            self._tool_calls += [call.model_dump(mode="json") for call in chunk.tool_calls]
        self._data |= chunk.data or {}
        self._size_bytes += len(content.encode()) + len(thinking.encode())
        if chunk.usage is not None:
            self._usage += chunk.usage

    def result(self, stop_reason: StopReason) -> InvocationResult:
        """The answer so far; a cut one counts the pieces that came, for the node never told."""
        usage = self._usage
        if not usage.completion_tokens and self._pieces and not self._cached:
            usage = usage.model_copy(update={"completion_tokens": len(self._pieces)})
        return InvocationResult(
            id=self._run.id,
            agent=self._asked.agent,
            model=self.model,
            node=(self._tally.node or self._at.node) if self.model else "",
            tier=self._asked.tier,
            priority=self._asked.priority,
            text="".join(self._pieces),
            tool_calls=tuple(self._tool_calls),
            stop_reason=stop_reason,
            attempts=self._run.attempt,
            usage=usage,
            timings=self._run.timings(self._at),
            data=self._data,
            cached=self._cached,
        )

    async def keep(self, result: InvocationResult) -> None:
        """Remember a whole answer."""
        if not self._cached:
            await self._known.keep(result)
