"""A message of a conversation, and the one form into which every input is brought."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, TypeAdapter, ValidationError

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.frozen import Frozen, JsonObject, JsonText

__all__ = ["FunctionCall", "Image", "Message", "Prompt", "Role", "ToolCall", "as_messages", "with_system"]

Role = Literal["system", "user", "assistant", "tool"]


def _base64(value: str) -> str:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("an image must be base64 text") from error
    return value


Image = Annotated[str, AfterValidator(_base64)]  #: base64 of the picture's bytes


class FunctionCall(Frozen):
    """What a model asks to be called."""

    name: str
    arguments: JsonObject
    index: int | None = None  #: its place among the calls of one message; None: not told


class ToolCall(Frozen):
    """One tool call inside an assistant message (Ollama's shape)."""

    function: FunctionCall
    id: str | None = None


class Message(Frozen):
    """One message, as Ollama's /api/chat has it."""

    role: Role
    content: JsonText = ""
    thinking: JsonText | None = None
    images: tuple[Image, ...] | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_name: str | None = None  #: which tool a `tool` message answers for
    tool_call_id: str | None = None

    @property
    def says_something(self) -> bool:
        """False for blank text with nothing beside it."""
        return bool(self.content.strip() or self.images or self.tool_calls)

    @property
    def size_bytes(self) -> int:
        """Bytes of its texts and images, and of its tool calls as JSON."""
        texts = len(self.content.encode()) + len((self.thinking or "").encode())
        calls = sum(len(call.model_dump_json()) for call in self.tool_calls or ())
        return texts + calls + sum(len(image) for image in self.images or ())


Prompt = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]

_messages = TypeAdapter(tuple[Message, ...])


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Bring any input to one form: a tuple of messages.

    A str is one user message; a message or mapping is itself, and a result mapping (it has `text` and no
    `role`, as the step before in a chain returns it) is a user message of its text; a list is taken item by
    item. Raises InvalidInvocation for anything else.
    """
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    if isinstance(prompt, Message):
        return (prompt,)
    if isinstance(prompt, Mapping):
        if "text" in prompt and "role" not in prompt:
            return (Message(role="user", content=str(prompt["text"])),)
        prompt = [prompt]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise InvalidInvocation(
            f"The input must be a text, a message or a list of messages, not {type(prompt).__name__}."
        )
    try:
        return _messages.validate_python(list(prompt))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInvocation(f"Message {place}: {first['msg']}.") from None


def with_system(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    """Put the system prompt first, once: a conversation that already opens with a system message keeps it."""
    if not system_prompt or (messages and messages[0].role == "system"):
        return messages
    return (Message(role="system", content=system_prompt), *messages)
