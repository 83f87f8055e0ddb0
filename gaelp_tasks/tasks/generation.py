"""The work of a chat: an agent's answer, streamed as it comes."""

from contextlib import aclosing
from typing import Any

from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.models.frozen import well_formed
from gaelp_tasks.models.invocation import Invocation, InvocationResult, StopReason
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.registry import agent_class
from gaelp_tasks.streams import TokenStream
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
        self._pieces: list[str] = []
        self._size_bytes = 0
        self._tool_calls: list[dict[str, Any]] = []
        self._usage = Usage()

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

    async def do(self, stream: TokenStream) -> StopReason:
        """Stream the agent's answer. Raises NodeError, StreamFenced and whatever the agent raises."""
        asked = self._asked
        agent: BaseAgent = agent_class(asked.agent, self._at.settings)(self._at.client)
        answer = agent.run(
            asked.input,
            model=self.model,
            format=asked.format,
            tools=asked.tools,
            think=asked.think,
            stall_timeout_s=asked.stall_timeout_s,
            **(asked.options or {}),
        )
        limit_bytes = int(self._at.settings.max_output_bytes)
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                self._take(chunk, stream)
                self._run.cancellation.check()
                await stream.room()
                if self._size_bytes > limit_bytes or chunk.done_reason == "length":
                    return "length"
        return "stop"

    def _take(self, chunk: ChatResponse, stream: TokenStream) -> None:
        if self._run.first_token_s is None and (chunk.content or chunk.thinking or chunk.tool_calls):
            self._run.first_token_s = self._at.tick() - self._run.started
        content, thinking = well_formed(chunk.content), well_formed(chunk.thinking)
        if content:
            self._pieces.append(content)
            stream.write(content)
        if thinking:
            stream.think(thinking)
        if chunk.tool_calls:
            self._tool_calls += [call.model_dump(mode="json") for call in chunk.tool_calls]
        self._size_bytes += len(content.encode()) + len(thinking.encode())
        if chunk.usage is not None:
            self._usage += chunk.usage

    def result(self, stop_reason: StopReason) -> InvocationResult:
        """The answer so far; a cut one counts the pieces that came, for the node never told."""
        usage = self._usage
        if not usage.completion_tokens and self._pieces:
            usage = usage.model_copy(update={"completion_tokens": len(self._pieces)})
        return InvocationResult(
            id=self._run.id,
            agent=self._asked.agent,
            model=self.model,
            node=self._at.node if self.model else "",
            tier=self._asked.tier,
            priority=self._asked.priority,
            text="".join(self._pieces),
            tool_calls=tuple(self._tool_calls),
            stop_reason=stop_reason,
            attempts=self._run.attempt,
            usage=usage,
            timings=self._run.timings(self._at),
        )
