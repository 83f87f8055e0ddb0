"""The requests of Ollama's API that this server understands, checked before anything else looks at them.

Fields that Ollama has and this server has not are refused in words; fields unknown to both are ignored, as
Ollama ignores them.
"""

import json
import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gaelp_tasks.demo.model_server.faults import ApiError

_GO_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds(value: object) -> float | None:
    """`keep_alive` in seconds, from a number or text with Go's units; inf for ever, None where not given."""
    if value is None:
        return None
    if isinstance(value, str):
        value = _go_seconds(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError('must be a number of seconds or text such as "5m"')  # noqa: TRY004  pydantic wants ValueError
    return math.inf if value < 0 else float(value)


def _go_seconds(text: str) -> float:
    unsigned = text.removeprefix("-").removeprefix("+")
    if unsigned == "0":
        return 0.0
    total, end = 0.0, 0
    for match in _GO_DURATION.finditer(unsigned):
        if match.start() != end:
            break
        total, end = total + float(match[1]) * _GO_UNITS_S[match[2]], match.end()
    if not unsigned or end != len(unsigned):
        raise ValueError(f'"{text}" is no duration; write a number with a unit, such as "5m" or "90s"')
    return -total if text.startswith("-") else total


class Wire(BaseModel):
    """Strict about types, silent about unknown fields."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a request body. Raises ApiError 400 with one sentence."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the request body is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ApiError(400, "the request body must be a JSON object")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ApiError(400, f"invalid {where}: {first['msg'].removeprefix('Value error, ')}") from error


class Options(Wire):
    """Ollama's options that the engine can follow; None leaves the engine's own default.

    `num_ctx` and what else belongs to a loading model is fixed by the server's command line and ignored here.
    """

    num_predict: int | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    stop: list[str] | str | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def for_engine(self) -> dict[str, Any]:
        """The same under llama.cpp's names."""
        given = self.model_dump(exclude_none=True)
        if "num_predict" in given:
            given["n_predict"] = given.pop("num_predict")
        if isinstance(self.stop, str):
            given["stop"] = [self.stop]
        return given


KeepAlive = Annotated[float | None, BeforeValidator(seconds)]
Format = dict[str, Any] | Literal["json", ""] | None


class ToolFunction(Wire):
    """A function that a model may call; `parameters` is a JSON schema."""

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, Any] = {"type": "object"}


class Tool(Wire):
    """One entry of `tools`."""

    function: ToolFunction


class CalledFunction(Wire):
    """What a model asked for earlier in the conversation."""

    name: str
    arguments: dict[str, Any] = {}


class ToolCall(Wire):
    """One entry of a message's `tool_calls`."""

    function: CalledFunction


class Message(Wire):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None


class ModelRequest(Wire):
    """What every request about one model carries."""

    model: str = Field(min_length=1)
    keep_alive: KeepAlive = None
    options: Options | None = None

    def engine_options(self) -> dict[str, Any]:
        """Options under llama.cpp's names; empty when none were given."""
        return self.options.for_engine() if self.options else {}


class WritingRequest(ModelRequest):
    """What chat and generate share."""

    stream: bool = True
    format: Format = None
    think: bool | str | None = None
    truncate: bool = True
    logprobs: bool | None = None

    def refuse_what_is_missing(self, images: bool) -> None:
        """Raise ApiError 400 for a part of Ollama's API that this server has not."""
        if self.think:
            raise ApiError(400, f'"{self.model}" does not support thinking')
        if images:
            raise ApiError(400, f'"{self.model}" does not support images: this server reads text only')
        if self.logprobs:
            raise ApiError(400, "this server does not give logprobs")

    def constraint(self) -> dict[str, Any]:
        """The engine's fields that hold the answer to `format`."""
        match self.format:
            case None | "":
                return {}
            case "json":
                return {"json_schema": {"type": "object"}}
            case schema:
                return {"json_schema": schema}


class ChatRequest(WritingRequest):
    """POST /api/chat."""

    messages: list[Message] = []
    tools: list[Tool] | None = None


class GenerateRequest(WritingRequest):
    """POST /api/generate."""

    prompt: str = ""
    system: str = ""
    suffix: str = ""
    template: str = ""
    raw: bool = False
    images: list[Any] | None = None
    context: list[int] | None = None

    def refuse_what_is_missing(self, images: bool) -> None:
        """As its parent, and the fields of generate that have no counterpart in the engine."""
        super().refuse_what_is_missing(images)
        if self.suffix:
            raise ApiError(400, f'"{self.model}" does not support insert')
        if self.raw and self.format:
            raise ApiError(400, 'this server keeps no "format" with "raw"; send messages to /api/chat')
        for field in ("template", "context"):
            if getattr(self, field):
                raise ApiError(400, f'this server does not support "{field}"; send messages to /api/chat')


class EmbedRequest(ModelRequest):
    """POST /api/embed; `dimensions` None keeps them all."""

    input: list[str] | str = []
    truncate: bool = True
    dimensions: int | None = Field(default=None, ge=0)

    def texts(self) -> list[str]:
        """The texts to embed, always as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class LegacyEmbedRequest(ModelRequest):
    """POST /api/embeddings."""

    prompt: str = ""


class NamedRequest(Wire):
    """/api/show and /api/pull; `name` is the older spelling of `model`."""

    model: str = ""
    name: str = ""
    verbose: bool = False
    stream: bool = True

    @property
    def asked_for(self) -> str:
        """The model's name, however it was spelled."""
        return self.model or self.name
