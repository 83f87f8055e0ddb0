"""Ways to answer that an agent offers by name, and the steps of those that ask the model more than once."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from gaelp_tasks.clients.base import ChatResponse
from gaelp_tasks.models import Message
from gaelp_tasks.models.frozen import well_formed

__all__ = ["Mode", "in_steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A named way to answer."""

    system_prompt: str | None = None  #: in place of the agent's; None: the agent's
    steps: tuple[str, ...] = ()  #: what the model is told after each answer; only the last answer counts


async def in_steps(
    process: Callable[..., AsyncGenerator[ChatResponse, None]],
    conversation: tuple[Message, ...],
    steps: tuple[str, ...],
    options: Mapping[str, Any],
) -> AsyncGenerator[ChatResponse, None]:
    """Let `process` answer, then go on with each step; every answer before the last is thinking.

    Tools are for the first answer and `format` is for the last. Where the first one ends in tool calls that
    the caller is to answer, the steps are left out.
    """
    given = dict(options)
    form = given.pop("format", None)
    for step in steps:
        text: list[str] = []
        handed_back = False
        async with aclosing(process(conversation, **given)) as draft:
            async for chunk in draft:
                text.append(chunk.content)
                handed_back = handed_back or bool(chunk.tool_calls)
                yield chunk if handed_back else _as_thinking(chunk)
        if handed_back:
            return
        given.pop("tools", None)
        conversation = (
            *conversation,
            Message(role="assistant", content=well_formed("".join(text))),
            Message(role="user", content=step),
        )
        yield ChatResponse(thinking="\n\n")
    async with aclosing(
        process(conversation, **given, **({} if form is None else {"format": form}))
    ) as answer:
        async for chunk in answer:
            yield chunk


def _as_thinking(chunk: ChatResponse) -> ChatResponse:
    changed = {"content": "", "thinking": chunk.thinking + chunk.content, "done": False, "done_reason": None}
    return chunk.model_copy(update=changed)
