"""A message of a conversation, and the one form into which every input is brought."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, TypeAdapter, ValidationError, model_validator

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

#: names under which other APIs take sound; Ollama drops such a field without a word
AUDIO = ("audio", "audios", "input_audio")
WAV = re.compile(rb"RIFF....WAVE", re.DOTALL)


def _with_sound(message: dict[str, Any]) -> dict[str, Any]:
    """Put sound where Ollama takes it: a WAV file among the images, known by its first bytes."""
    name = next(name for name in AUDIO if name in message)
    sounds = message.pop(name)
    sounds = [sounds] if isinstance(sounds, str) else sounds
    for sound in sounds if isinstance(sounds, list | tuple) else (None,):
        if not isinstance(sound, str) or not WAV.match(base64.b64decode(_base64(sound)[:16])):
            raise ValueError(
                f"{name} must be base64 of WAV files, which is what Ollama takes: convert or transcribe it"
            )
    images = message.get("images") or []
    if not isinstance(images, list | tuple):
        raise ValueError("images must be a list")  # noqa: TRY004  pydantic hears a ValueError
    return message | {"images": [*images, *sounds]}


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

    @model_validator(mode="before")
    @classmethod
    def _sound(cls, value: Any) -> Any:
        return (
            _with_sound(dict(value))
            if isinstance(value, Mapping) and not value.keys().isdisjoint(AUDIO)
            else value
        )

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


#: Anything that `as_messages` takes; Any stands for a pydantic message of another library.
Prompt = str | Message | Mapping[str, Any] | Sequence[Any] | Iterator[Any]

_messages = TypeAdapter(tuple[Message, ...])


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Bring any input to one form: a tuple of messages.

    A str is one user message; a message, or another library's with the same fields, is itself, and so is a
    mapping; a result mapping (it has `text` and no `role`, as the step before in a chain returns it) is a
    user message of its text. A list, tuple or iterator of these, mixed as you like, is taken item by item.
    `audio` of a message, WAV files as base64, goes where Ollama takes it: among the images. Raises
    InvalidInvocation for anything else.
    """
    if isinstance(prompt, str | Message | Mapping) or hasattr(prompt, "model_dump"):
        return _checked([prompt])
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence | Iterator):
        raise InvalidInvocation(
            f"The input must be a text, a message or a list of messages, not {type(prompt).__name__}."
        )
    return _checked(prompt)


def _checked(items: Sequence[Any] | Iterator[Any]) -> tuple[Message, ...]:
    try:
        return _messages.validate_python([_as_mapping(item) for item in items])
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise InvalidInvocation(f"Message {place}: {text}.") from None


def _as_mapping(item: Any) -> Any:
    if isinstance(item, str):
        return {"role": "user", "content": item}
    if isinstance(item, Message):
        return item
    if isinstance(item, Mapping) and "text" in item and "role" not in item:
        return {"role": "user", "content": str(item["text"])}
    dump = getattr(item, "model_dump", None)
    return dump(mode="json", exclude_none=True) if callable(dump) else item


def with_system(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    """Put the system prompt first, once: a conversation that already opens with a system message keeps it."""
    if not system_prompt or (messages and messages[0].role == "system"):
        return messages
    return (Message(role="system", content=system_prompt), *messages)
