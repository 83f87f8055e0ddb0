"""Ollama's protocol as data, what nodes say: chunks and documents. Nothing of it is trusted."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import from_json

from gaelp_tasks.clients.base import ChatResponse, Embeddings, ModelInfo
from gaelp_tasks.errors import NodeFailed, StreamTruncated
from gaelp_tasks.footprints import ModelShape, is_cut, read_shape
from gaelp_tasks.models import FunctionCall, ToolCall, Usage

__all__ = [
    "MAX_LINE_BYTES",
    "ChatDecoder",
    "Running",
    "canonical",
    "embeddings",
    "error_in",
    "is_embedding",
    "models",
    "running",
    "shape",
    "shown",
    "version",
    "whole_shape",
]

MAX_LINE_BYTES = 8 * 1024**2  #: a longer line is no token
MAX_COUNT = 2**53  #: the largest integer that every JSON reader keeps exact
MAX_DETAIL = 300  #: characters of a node's own words in our errors


def canonical(model: str) -> str:
    """The name as a node lists it: without its own registry, and without a tag it means `latest`."""
    model = model.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return model if ":" in model.rsplit("/", maxsplit=1)[-1] else f"{model}:latest"


# --- the chat stream --------------------------------------------------------------------


class ChatDecoder:
    """Bytes of a chat stream to chunks, wherever the network cut them."""

    def __init__(self, node: str) -> None:
        self.done = False  #: the last chunk has been handed out
        self._node = node
        self._line: list[bytes] = []  # pieces of the line that is not complete yet
        self._line_bytes = 0

    def feed(self, data: bytes) -> Iterator[ChatResponse]:
        """The chunks that these bytes complete; what follows the last chunk is ignored. Raises NodeFailed."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = self._join(line)
            if whole and not whole.isspace() and not self.done:
                chunk = _chunk(_document(whole, self._node), self._node)
                self.done = chunk.done
                yield chunk
        self._keep(rest)

    def end(self) -> Iterator[ChatResponse]:
        """The chunk of a last line without its newline. Raises StreamTruncated where `done` never came."""
        whole = self._join(b"")
        if whole.strip() and not self.done:
            try:
                document = _document(whole, self._node)
            except NodeFailed:
                raise _truncated(self._node) from None
            chunk = _chunk(document, self._node)
            self.done = chunk.done
            yield chunk
        if not self.done:
            raise _truncated(self._node)

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._line_bytes += len(piece)
        if self._line_bytes > MAX_LINE_BYTES:
            raise NodeFailed(
                f"{self._node} sent a line of more than {MAX_LINE_BYTES:,} bytes, which is no token; "
                "look at the model's output there.",
                node=self._node,
            )
        self._line.append(piece)

    def _join(self, last: bytes) -> bytes:
        self._keep(last)
        whole = b"".join(self._line)
        self._line.clear()
        self._line_bytes = 0
        return whole


def _truncated(node: str) -> StreamTruncated:
    return StreamTruncated(f"{node} ended the answer without its final line; try again.", node=node)


def _malformed(node: str) -> NodeFailed:
    return NodeFailed(
        f"{node} sent what is not Ollama's protocol; is there an Ollama server at that address?", node=node
    )


def _document(line: bytes, node: str) -> dict[str, Any]:
    try:
        document = from_json(line, allow_inf_nan=False)
    except ValueError:
        raise _malformed(node) from None
    if not isinstance(document, dict):
        raise _malformed(node)
    return document


def _chunk(document: dict[str, Any], node: str) -> ChatResponse:
    if document.get("error") is not None:
        raise NodeFailed(f"{node} broke off: {_error_text(document) or 'it gave no reason'}.", node=node)
    message = document.get("message") or {}
    if not isinstance(message, dict):
        raise _malformed(node)
    last: dict[str, Any] = {}
    if document.get("done"):
        last["done_reason"] = document.get("done_reason")
        last["usage"] = Usage(
            prompt_tokens=_count(document.get("prompt_eval_count")),
            completion_tokens=_count(document.get("eval_count")),
        )
        last["load_s"] = _count(document.get("load_duration")) / 1e9
    try:
        if message.get("tool_calls"):
            last["tool_calls"] = tuple(
                _ToolCall.model_validate(call).ours() for call in message["tool_calls"]
            )
        return ChatResponse(
            content=message.get("content") or "",
            thinking=message.get("thinking") or "",
            done=document.get("done") or False,
            model=document.get("model") or "",
            node=node,
            **last,
        )
    except (ValueError, TypeError):  # ValidationError is a ValueError
        raise _malformed(node) from None


def _count(value: Any) -> int:
    """A number from outside as a whole one between 0 and MAX_COUNT; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124  NaN
        return 0
    return int(min(max(value, 0), MAX_COUNT))


# --- documents --------------------------------------------------------------------------

Count = Annotated[int, BeforeValidator(_count)]


def _mapping(value: Any) -> Any:
    """What is no mapping is not told: calls must not fail of it."""
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else ""


Text = Annotated[str, BeforeValidator(lambda value: value or "")]


class _Answer(BaseModel):
    """Part of a node's answer: unknown fields are newer than we are."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class _Function(_Answer):
    name: str
    arguments: dict[str, Any]
    index: Count | None = None


class _ToolCall(_Answer):
    function: _Function
    id: str | None = None

    def ours(self) -> ToolCall:
        json.dumps(self.function.arguments, allow_nan=False)  # 1e999 is read as infinity
        return ToolCall(function=FunctionCall(**dict(self.function)), id=self.id)


class _Details(_Answer):
    family: Text = ""


class _Model(_Answer):
    name: str
    size: Count = 0
    digest: Text = ""
    details: _Details | None = None
    capabilities: tuple[str, ...] | None = None


class _Tags(_Answer):
    models: tuple[_Model, ...] | None = None


class Running(_Answer):
    """A model in a node's memory."""

    name: str
    context_length: Count = 0  #: tokens of one slot; 0: not told
    size: Count = 0  #: bytes, all of it
    size_vram: Count = 0  #: bytes of it that are on a GPU


class _Ps(_Answer):
    models: tuple[Running, ...] | None = None


class _Show(_Answer):
    capabilities: tuple[str, ...] | None = None
    details: _Details | None = None
    model_info: Annotated[dict[str, Any], BeforeValidator(_mapping)] = {}
    parameters: Annotated[str, BeforeValidator(_text)] = ""


class _Version(_Answer):
    version: str


class _Embed(_Answer):
    embeddings: tuple[tuple[float, ...], ...]
    prompt_eval_count: Count = 0
    model: Text = ""


A = TypeVar("A", bound=_Answer)


def _read(kind: type[A], answer: bytes, node: str) -> A:
    try:
        return kind.model_validate_json(answer)
    except ValidationError:
        raise _malformed(node) from None


def version(answer: bytes, node: str) -> str:
    """What /api/version says. Raises NodeFailed, as all of these do, for another shape."""
    return _read(_Version, answer, node).version


def models(answer: bytes, node: str) -> tuple[ModelInfo, ...]:
    """What /api/tags lists, in its order."""
    return tuple(
        ModelInfo(
            name=model.name,
            size_bytes=model.size,
            digest=model.digest,
            family=model.details.family if model.details else "",
            capabilities=model.capabilities or (),
        )
        for model in _read(_Tags, answer, node).models or ()
    )


def running(answer: bytes, node: str) -> tuple[Running, ...]:
    """What /api/ps lists."""
    return _read(_Ps, answer, node).models or ()


def shown(answer: bytes, info: ModelInfo, node: str) -> ModelInfo:
    """`info` with what /api/show adds to it."""
    show = _read(_Show, answer, node)
    family = show.details.family if show.details else ""
    return info.model_copy(
        update={"capabilities": show.capabilities or info.capabilities, "family": family or info.family}
    )


def shape(answer: bytes, info: ModelInfo, node: str) -> ModelShape | None:
    """What /api/show says of a model's memory; None where it left out what decides: ask again, verbosely."""
    cut = is_cut(_read(_Show, answer, node).model_info)
    return None if cut else whole_shape(answer, info, node)


def whole_shape(answer: bytes, info: ModelInfo, node: str) -> ModelShape:
    """The same of a verbose answer: what is left out there is not known."""
    show, known = _read(_Show, answer, node), shown(answer, info, node)
    return read_shape(
        known.name,
        known.size_bytes,
        show.model_info,
        embeds=is_embedding(known),
        family=known.family,
        parameters=show.parameters,
    )


def is_embedding(info: ModelInfo) -> bool:
    """Whether the model makes embeddings and no text; by its family where the node tells no capabilities."""
    if info.capabilities:
        return "embedding" in info.capabilities
    return "bert" in info.family


def embeddings(answer: bytes, texts: Sequence[str], node: str) -> Embeddings:
    """What /api/embed answers, checked to be one vector for each text, all of one length."""
    found = _read(_Embed, answer, node)
    lengths = {len(vector) for vector in found.embeddings}
    if len(found.embeddings) != len(texts) or len(lengths) > 1 or 0 in lengths:
        raise NodeFailed(
            f"{node} made {len(found.embeddings)} vectors of lengths {sorted(lengths)} for {len(texts)} "
            "texts; is that an embedding model?",
            node=node,
        )
    usage = Usage(prompt_tokens=found.prompt_eval_count)
    return Embeddings(vectors=found.embeddings, usage=usage, model=found.model, node=node)


def error_in(answer: bytes) -> str:
    """A node's own words in `{"error": ...}`, on one line, cut short; '' for anything else (HTML)."""
    try:
        document = from_json(answer)
    except ValueError:
        return ""
    return _error_text(document) if isinstance(document, dict) else ""


def _error_text(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    if isinstance(error, Mapping):
        error = error.get("message")
    return " ".join(error.split())[:MAX_DETAIL].rstrip(". ") if isinstance(error, str) else ""
