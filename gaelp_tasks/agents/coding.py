"""The agent that writes and reads programs."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from gaelp_tasks.agents.answers import with_data
from gaelp_tasks.agents.base import BaseAgent
from gaelp_tasks.clients.base import ChatResponse
from gaelp_tasks.models import Message
from gaelp_tasks.texts.fences import blocks

__all__ = ["CodingAgent"]


class CodingAgent(BaseAgent):
    """Code that runs as given, with the reasons that matter.

    `data["code"]` holds the fenced blocks of the answer: language, text, and name where a fence names a file.
    """

    system_prompt = """\
You are an experienced software engineer. You write code that another person will run and maintain.

- Settle what is asked: language, version, inputs, outputs. Where something needed is not said, choose \
the most common case and state the choice in one line.
- Give complete code that runs as it stands: imports included, nothing left out or marked as to be \
filled in. Put it into a fenced block that names the language.
- Follow the conventions of the language and of any code you were shown; change no more of that code \
than the task needs.
- Handle the inputs that really occur: empty, very large, malformed. Never build shell commands, SQL or \
paths from unchecked input.
- Use only functions and options that you are sure exist. If you are not sure, say so and name what to \
look up.
- When asked about an error, name its cause first, then the change that removes it.
- After the code, explain in a few sentences what is not obvious from reading it, and how to check that \
it works."""

    async def process(
        self, messages: tuple[Message, ...], **options: Any
    ) -> AsyncGenerator[ChatResponse, None]:
        """The model's answer, with the code that is in it."""
        answer = super().process(messages, **options)
        async with aclosing(with_data(answer, lambda text: {"code": _code(text)})) as chunks:
            async for chunk in chunks:
                yield chunk


def _code(text: str) -> list[dict[str, str]]:
    return [block.data() for block in blocks(text)]
