"""Turns with tools: the model calls, we run, the model reads, until it answers.

Of one turn either all calls are run here or all are handed back: they are handed back where one of them is
for a tool that was given as a mere schema, because only the caller can answer that, and a model expects all
results together. A call of a tool that was not offered is answered with a sentence that says so.

The text of every turn is part of the answer and streams as it comes. With a `format` the turns with tools are
thinking, and the answer is one more call without tools: a grammar would keep the model from calling.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from gaelp_tasks.agents.answers import with_data
from gaelp_tasks.clients.base import BaseOllamaClient, ChatResponse
from gaelp_tasks.errors import InvalidInvocation, SettingsError
from gaelp_tasks.models import Message, ToolCall
from gaelp_tasks.models.frozen import JsonObject, well_formed
from gaelp_tasks.registry import TOOLS
from gaelp_tasks.settings import Settings, load_settings
from gaelp_tasks.tools import Tool, ToolRun

__all__ = ["Limits", "Offer", "offer", "take_turns", "tool_named"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a model may go with tools."""

    rounds: int  #: turns with calls
    timeout_s: float  #: for one call


@dataclass(frozen=True, slots=True)
class Offer:
    """What a model may call: the allow-list of one run."""

    here: dict[str, Tool] = field(default_factory=dict)  #: run by us
    schemas: list[Any] = field(default_factory=list)  #: answered by the caller

    def all(self) -> list[Any]:
        """As the client's `tools`."""
        return [*(tool.schema for tool in self.here.values()), *self.schemas]

    def is_for_caller(self, call: ToolCall) -> bool:
        """Whether only the caller can answer this."""
        name = call.function.name
        return name not in self.here and any(_name(schema) == name for schema in self.schemas)


def offer(tools: Iterable[Any], settings: Settings | None = None) -> Offer:
    """Sort `tools`: names, functions and tools of ours, and schemas. None: the settings of this process.

    Raises InvalidInvocation for an unknown name, SettingsError where GAELP_TOOLS names what cannot be a tool.
    """
    sorted_out = Offer()
    for given in tools:
        tool = tool_named(given, settings or load_settings()) if isinstance(given, str) else given
        if callable(tool) and hasattr(tool, "__name__"):
            tool = Tool.of(tool, tool.__name__)
        if isinstance(tool, Tool):
            sorted_out.here[tool.name] = tool
        else:
            sorted_out.schemas.append(tool)
    return sorted_out


def tool_named(given: Any, settings: Settings) -> Any:
    """The tool behind a name; what is no name is returned as it is. Raises as `offer`."""
    if not isinstance(given, str):
        return given
    try:
        return Tool.of(TOOLS.find(given, settings), given)
    except ValueError as error:
        if isinstance(error, InvalidInvocation):
            raise
        raise SettingsError(f"{TOOLS.setting}: {error}") from error


async def take_turns(
    client: BaseOllamaClient,
    messages: tuple[Message, ...],
    offered: Offer,
    limits: Limits,
    **options: Any,
) -> AsyncGenerator[ChatResponse, None]:
    """Stream the answer of a conversation in which the model may call.

    After `limits.rounds` turns with calls the model is asked once more, without tools. What was run is
    `data["tool_runs"]` of the last chunk.
    """
    form = options.pop("format", None)
    runs: list[JsonObject] = []
    for _ in range(limits.rounds):
        turn = _Turn(offered, aside=form is not None)
        async with aclosing(client.chat(messages, tools=offered.all(), **options)) as answer:
            async for chunk in answer:
                yield turn.take(chunk)
        if not turn.calls and form is not None:
            break
        if not turn.calls or turn.is_for_caller:
            yield turn.last(runs)
            return
        messages = (*messages, turn.message())
        for call in turn.calls:
            run = await _run(call, offered, limits.timeout_s)
            runs.append(run.data())
            messages = (
                *messages,
                Message(role="tool", content=run.text, tool_name=call.function.name, tool_call_id=call.id),
            )
        if turn.text and not turn.text[-1][-1:].isspace():
            yield turn.aside_or_not(ChatResponse(content="\n\n"))
    if form is not None:
        options["format"] = form
    async with aclosing(with_data(client.chat(messages, **options), lambda _: _told(runs))) as answer:
        async for chunk in answer:
            yield chunk


class _Turn:
    """One call of the model: calls and the end are held back until all of it is known."""

    def __init__(self, offered: Offer, *, aside: bool) -> None:
        self.calls: list[ToolCall] = []
        self.text: list[str] = []
        self._thinking: list[str] = []
        self._offered = offered
        self._aside = aside
        self._end = ChatResponse(done=True, done_reason="stop")

    def take(self, chunk: ChatResponse) -> ChatResponse:
        """What of a chunk can go on at once."""
        self.calls += chunk.tool_calls
        self.text += [chunk.content] if chunk.content else []
        self._thinking.append(chunk.thinking)
        if chunk.done:
            self._end = chunk
        passed = {"tool_calls": (), "done": False, "done_reason": None}
        return self.aside_or_not(chunk.model_copy(update=passed))

    def aside_or_not(self, chunk: ChatResponse) -> ChatResponse:
        """Text beside the answer is thinking."""
        if not self._aside:
            return chunk
        return chunk.model_copy(update={"content": "", "thinking": chunk.thinking + chunk.content})

    @property
    def is_for_caller(self) -> bool:
        """Whether one of the calls is for the caller, and so all are."""
        return any(self._offered.is_for_caller(call) for call in self.calls)

    def message(self) -> Message:
        """The turn as part of the conversation."""
        return Message(
            role="assistant",
            content=well_formed("".join(self.text)),
            thinking=well_formed("".join(self._thinking)) or None,
            tool_calls=tuple(self.calls),
        )

    def last(self, runs: list[JsonObject]) -> ChatResponse:
        """The last chunk, with the calls that the caller is to answer; its text and usage went before."""
        held = {"content": "", "thinking": "", "usage": None, "tool_calls": tuple(self.calls), "done": True}
        return self._end.model_copy(update={**held, "data": _told(runs)})


def _told(runs: list[JsonObject]) -> JsonObject:
    return {"tool_runs": [*runs]} if runs else {}


async def _run(call: ToolCall, offered: Offer, timeout_s: float) -> ToolRun:
    name, arguments = call.function.name, call.function.arguments
    tool = offered.here.get(name)
    if tool is None:
        text = f"Error: There is no tool called {name[:100]!r}; there are: {', '.join(offered.here)}."
        return ToolRun(name=name, arguments=arguments, text=text, failed=True)
    return await tool.run(arguments, timeout_s=timeout_s)


def _name(schema: Any) -> str:
    function = schema.get("function") if isinstance(schema, dict) else None
    return str(function.get("name", "")) if isinstance(function, dict) else ""
