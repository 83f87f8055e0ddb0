"""A streamed answer as a whole, and what an agent makes of it."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from gaelp_tasks.clients.base import ChatResponse
from gaelp_tasks.models import ToolCall, Usage
from gaelp_tasks.models.frozen import Frozen, JsonObject, well_formed

__all__ = ["Answer", "collect", "with_data"]


class Answer(Frozen):
    """Everything that a stream of chunks says."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()  #: for the caller to answer
    data: JsonObject = {}  # noqa: RUF012  pydantic copies it  #: what the agent made of its text
    usage: Usage = Usage()  #: of all calls of the model
    stop_reason: str = "stop"  #: stop or length
    model: str = ""
    node: str = ""


async def collect(answer: AsyncGenerator[ChatResponse, None]) -> Answer:
    """Read a stream to its end; it is closed whatever happens."""
    async with aclosing(answer):
        chunks = [chunk async for chunk in answer]
    data: dict[str, Any] = {}
    for chunk in chunks:
        data |= chunk.data or {}
    return Answer(
        text="".join(chunk.content for chunk in chunks),
        thinking="".join(chunk.thinking for chunk in chunks),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        data=data,
        usage=sum((chunk.usage for chunk in chunks if chunk.usage), Usage()),
        stop_reason="length" if any(chunk.done_reason == "length" for chunk in chunks) else "stop",
        model=next((chunk.model for chunk in chunks if chunk.model), ""),
        node=next((chunk.node for chunk in chunks if chunk.node), ""),
    )


async def with_data(
    answer: AsyncGenerator[ChatResponse, None], make: Callable[[str], Mapping[str, Any]]
) -> AsyncGenerator[ChatResponse, None]:
    """The same stream; its last chunk also carries what `make` says about the whole text."""
    text: list[str] = []
    done = False
    async with aclosing(answer):
        async for chunk in answer:
            text.append(chunk.content)
            if chunk.done:
                done = True
                made = {**(chunk.data or {}), **make(well_formed("".join(text)))}
                yield chunk.model_copy(update={"data": made})
            else:
                yield chunk
    if not done:  # a client that never says so
        yield ChatResponse(data=dict(make(well_formed("".join(text)))))
