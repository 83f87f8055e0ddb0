"""One call of an agent, and its result."""

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.document import Document, as_documents
from gaelp_tasks.models.frozen import Frozen, JsonObject, JsonText
from gaelp_tasks.models.message import Image, Message, as_messages
from gaelp_tasks.models.shape import as_format
from gaelp_tasks.models.usage import Timings, Usage

__all__ = [
    "DEFAULT_PRIORITY",
    "ENVELOPE_VERSION",
    "WITHOUT_ATTACHMENT",
    "WITH_ATTACHMENT",
    "WITH_BOUND",
    "Embedding",
    "EmbeddingResult",
    "Invocation",
    "InvocationResult",
    "PositiveSeconds",
    "StopReason",
    "Think",
    "Tier",
    "one_sentence",
]

ENVELOPE_VERSION = 3  #: the newest; raised when a worker of the version before could misread a message
WITHOUT_ATTACHMENT = 1  #: the version of a message that carries all of its arguments
WITH_ATTACHMENT = 2  #: of one that refers to some
WITH_BOUND = 3  #: of one that may tell only so many tokens; a worker that does not know that refuses it
DEFAULT_PRIORITY = 5


class Tier(StrEnum):
    """How urgent: a higher tier is always served first."""

    INTERACTIVE = "interactive"  #: somebody is waiting
    BATCH = "batch"  #: scheduled work
    BACKGROUND = "background"  #: whenever there is room

    @property
    def rank(self) -> int:
        """0 for the highest tier, counting down the list."""
        return list(Tier).index(self)


StopReason = Literal["stop", "length", "cancelled", "deadline", "stall", "budget", "expired"]
Think = bool | Literal["low", "medium", "high", "max"]
PositiveSeconds = Annotated[float, Field(gt=0, lt=366 * 86_400)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


#: what chat() or the request itself takes, beside the model's options
_ARGUMENTS = frozenset(
    {"messages", "model", "format", "tools", "think", "stall_timeout_s", "keep_alive", "options", "stream"}
)


class Invocation(Frozen):
    """What a caller asks for; the keyword arguments of `gaelp.invoke_agent` (contract, section 2)."""

    prompt: JsonText | None = None
    messages: tuple[Message, ...] | None = None
    agent: Name = "chat"
    model: Name | None = None  #: None: the agent's, else the node's default
    tier: Tier = Tier.INTERACTIVE
    priority: Annotated[int, Field(ge=1, le=10, strict=True)] = DEFAULT_PRIORITY  #: 10 first
    options: JsonObject | None = None  #: Ollama's model options; num_ctx belongs to the node
    format: Literal["json"] | JsonObject | None = None  #: "json" or a JSON schema
    tools: tuple[Name | JsonObject, ...] | None = None  #: names of registered tools, or schemas as Ollama's
    mode: Name | None = None  #: one of the agent's own modes; None: its usual one
    documents: tuple[Document, ...] | None = None  #: what the agent shall rest its answer on
    parser: Name | None = None  #: a registered parser, applied to the whole text
    cache: bool | None = None  #: take and keep an exact answer; None: as the node's settings say
    images: tuple[Image, ...] | None = None  #: base64; belong to the prompt
    think: Think | None = None
    deadline_s: PositiveSeconds | None = None  #: wall clock from publication; None: none
    stall_timeout_s: Annotated[float, Field(ge=0, lt=86_400)] | None = (
        None  #: 0: off; None: the node's setting
    )
    queue_ttl_s: PositiveSeconds | None = None  #: given up when still queued after this; None: never
    idempotency_key: Name | None = None
    most_tokens: Annotated[int, Field(ge=1, le=2**53, strict=True)] | None = (
        None  #: are paid for: the next one cuts it with "budget"; None: any number
    )
    tenant: Name | None = None
    metadata: JsonObject | None = None

    @field_validator("options")
    @classmethod
    def _node_owns_context(cls, value: JsonObject | None) -> JsonObject | None:
        if value and "num_ctx" in value:
            raise ValueError("num_ctx is one value per model and belongs to the node (GAELP_NUM_CTX)")
        if taken := set(value or ()) & _ARGUMENTS:
            raise ValueError(f"{min(taken)} is an argument of its own, not a model option")
        return value

    @model_validator(mode="after")
    def _one_input(self) -> "Invocation":
        if self.prompt is not None and self.messages is not None:
            raise ValueError("give either prompt or messages, not both")
        if self.images is not None and self.prompt is None:
            raise ValueError("images belong to a prompt; with messages put them into the message")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.prompt is None and not any(message.says_something for message in self.messages or ()):
            raise ValueError("the prompt is empty: give prompt or messages")
        return self

    @classmethod
    def parse(cls, arguments: Mapping[str, Any], *, max_prompt_bytes: int) -> "Invocation":
        """Build from keyword arguments; a message, list or result mapping as `prompt` becomes `messages`.

        A pydantic class as `format` becomes its schema, a function among `tools` its name, a single
        document a list. Raises InvalidInvocation with one sentence that never repeats the offending value.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        prompt = given.get("prompt")
        if isinstance(prompt, Mapping) and "text" in prompt and "role" not in prompt:
            given["prompt"] = prompt["text"]
        elif prompt is not None and not isinstance(prompt, str):
            given.pop("prompt")
            if "messages" in given:
                raise InvalidInvocation("Give either prompt or messages, not both.")
            given["messages"] = as_messages(prompt)
        if "messages" in given:
            given["messages"] = as_messages(given["messages"])
        given |= _from_objects(given)
        try:
            invocation = cls.model_validate(given)
        except ValidationError as error:
            raise InvalidInvocation(one_sentence(error)) from None
        size_bytes = invocation.size_bytes
        if size_bytes > max_prompt_bytes:
            raise InvalidInvocation(
                f"The prompt has {size_bytes:,} bytes and the limit is {max_prompt_bytes:,} "
                "(GAELP_MAX_PROMPT_BYTES)."
            )
        return invocation

    @property
    def size_bytes(self) -> int:
        """Bytes of all that the caller sends along: texts, images, and the JSON beside them."""
        return (
            sum(message.size_bytes for message in self.input)
            + sum(
                len(json.dumps(value))
                for value in (self.options, self.format, self.tools, self.metadata)
                if value
            )
            + sum(document.size_bytes for document in self.documents or ())
        )

    @property
    def input(self) -> tuple[Message, ...]:
        """The conversation to answer, whichever way it was given."""
        if self.messages is not None:
            return self.messages
        return (Message(role="user", content=self.prompt or "", images=self.images),)

    def wire(self) -> dict[str, Any]:
        """The keyword arguments of the message: JSON values only, what was not given is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def summary(self) -> str:
        """What logs and events may show: never a prompt."""
        return f"agent={self.agent} model={self.model or 'default'} tier={self.tier} priority={self.priority}"


class InvocationResult(Frozen):
    """What an invocation returns (contract, section 2)."""

    id: str
    agent: str
    model: str  #: '' when it never reached a model
    node: str
    tier: Tier
    priority: int
    text: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    stop_reason: StopReason
    attempts: int  #: runs that counted, this one included
    usage: Usage = Usage()
    timings: Timings = Timings()
    data: JsonObject = Field(
        default_factory=dict
    )  #: what the agent or parser made of the text: parsed, code, citations
    cached: bool = False  #: the exact answer was known; no model ran


class Embedding(Frozen):
    """What a caller of `gaelp.embed` asks for."""

    input: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=10_000)]
    model: Name | None = None  #: None: GAELP_EMBED_MODEL, else the node's first embedding model
    tier: Tier = Tier.INTERACTIVE
    priority: Annotated[int, Field(ge=1, le=10, strict=True)] = DEFAULT_PRIORITY
    tenant: Name | None = None
    cache: bool | None = None  #: take and keep vectors; None: as the node's settings say
    metadata: JsonObject | None = None

    @classmethod
    def parse(cls, arguments: Mapping[str, Any], *, max_prompt_bytes: int) -> "Embedding":
        """Build from keyword arguments; a single text counts as a list of one.

        A result mapping (the step before in a chain, a member of a chord's header) counts as its text. Raises
        InvalidInvocation.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        asked = given.get("input")
        if isinstance(asked, str | Mapping):
            asked = (asked,)
        if isinstance(asked, list | tuple):
            given["input"] = tuple(
                item["text"] if isinstance(item, Mapping) and "text" in item else item for item in asked
            )
        try:
            embedding = cls.model_validate(given)
        except ValidationError as error:
            raise InvalidInvocation(one_sentence(error)) from None
        if any(not text.strip() for text in embedding.input):
            raise InvalidInvocation("A text to embed is empty.")
        size_bytes = sum(len(text.encode()) for text in embedding.input)
        if size_bytes > max_prompt_bytes:
            raise InvalidInvocation(
                f"The texts have {size_bytes:,} bytes together and the limit is {max_prompt_bytes:,} "
                "(GAELP_MAX_PROMPT_BYTES)."
            )
        return embedding

    def wire(self) -> dict[str, Any]:
        """The keyword arguments of the message: JSON values only, what was not given is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def summary(self) -> str:
        """What logs and events may show: never a text."""
        return f"texts={len(self.input)} model={self.model or 'default'} tier={self.tier}"


class EmbeddingResult(Frozen):
    """What `gaelp.embed` returns: one vector per text, in the order given."""

    id: str
    model: str
    node: str
    tier: Tier
    priority: int
    embeddings: tuple[tuple[float, ...], ...]  #: empty where it was cut
    stop_reason: StopReason = "stop"
    attempts: int
    usage: Usage = Usage()
    timings: Timings = Timings()
    cached: int = 0  #: how many of the vectors were known already


def _from_objects(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that may be given as objects of Python, in the form that travels."""
    changed: dict[str, Any] = {}
    if "format" in given:
        changed["format"] = as_format(given["format"])
        if changed["format"] != "json" and not isinstance(changed["format"], Mapping):
            raise InvalidInvocation('format: give "json", a JSON schema or a model class.')
    if isinstance(given.get("tools"), str):
        raise InvalidInvocation("tools: give a list of names and schemas.")
    if "tools" in given:
        changed["tools"] = [getattr(one, "__name__", one) for one in _listed(given["tools"])]
    if "documents" in given:
        changed["documents"] = as_documents(_listed(given["documents"]))
    return changed


def _listed(value: Any) -> Any:
    """One of something as a list of it."""
    is_many = isinstance(value, Iterable) and not isinstance(value, str | Mapping | BaseModel)
    return value if is_many else [value]


def one_sentence(error: ValidationError) -> str:
    """The most telling complaint of pydantic as a sentence, without the value that caused it."""
    complaints = error.errors(include_input=False, include_url=False)
    # of a union each branch complains; a rule of ours that was broken tells more than a type that was not met
    first = next((one for one in complaints if one["type"] == "value_error"), complaints[0])
    place = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ").rstrip(".")
    text = text[0].lower() + text[1:] if place else text[0].upper() + text[1:]
    return f"{place}: {text}." if place else f"{text}."
