"""What may be taken from the cache: the names that entries go by, and how vectors and answers are written.

A name holds everything that changes the answer, the tenant first of all: what is not the same in every part
is another entry. Two tenants share nothing, and no tenant is a tenant of its own.
"""

import inspect
import json
import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gaelp_tasks.cache import fingerprint
from gaelp_tasks.models.invocation import Invocation, InvocationResult

__all__ = [
    "Vector",
    "answer_name",
    "code_of",
    "may_repeat",
    "packed",
    "read_answer",
    "unpacked",
    "vector_names",
    "written",
]

FORM = 1  #: of the entries; another one makes all that was kept unknown

Vector = tuple[float, ...]

WIDTHS = {"f": 4, "d": 8}  #: bytes of a number in struct's formats, the short one first

#: Parts of an invocation that do not change its answer, or that something else stands for: `input` for
#: prompt, messages and images, a digest for the model, its code for the agent.
NOT_IN_NAME = frozenset(
    {
        "prompt", "messages", "images", "model", "agent", "tier", "priority", "deadline_s", "stall_timeout_s",
        "queue_ttl_s", "idempotency_key", "metadata", "cache", "most_tokens",
    }
)  # fmt: skip


# --- vectors ----------------------------------------------------------------------------


def vector_names(texts: Sequence[str], *, tenant: str | None, digest: str, context: Any) -> list[str]:
    """The name of each text's vector; `context` is what of the node changes vectors."""
    common = fingerprint("vector", FORM, tenant, digest, context).encode()
    return [sha256(common + text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]


def packed(vector: Vector) -> str:
    """The vector exactly as the model gave it: four bytes a number where that loses nothing, else eight."""
    for kind in WIDTHS:
        try:
            data = struct.pack(f"<{len(vector)}{kind}", *vector)
        except OverflowError:  # too large for four bytes
            continue
        if struct.unpack(f"<{len(vector)}{kind}", data) == vector:
            break
    return kind + b64encode(data).decode()


def unpacked(text: str | None) -> Vector | None:
    """The vector; None for anything that is none."""
    try:
        kind, data = text[0], b64decode(text[1:], validate=True)  # type: ignore[index]
        found = struct.unpack(f"<{len(data) // WIDTHS[kind]}{kind}", data)
    except (TypeError, LookupError, ValueError, struct.error):
        return None
    return found if found and all(map(math.isfinite, found)) else None


# --- answers ----------------------------------------------------------------------------


def may_repeat(asked: Invocation) -> bool:
    """Whether the same call would give the same answer: temperature 0 or a seed, and no tool of ours."""
    options = asked.options or {}
    temperature, seed = options.get("temperature"), options.get("seed")
    fixed = _number(temperature) and temperature == 0
    fixed = fixed or (_number(seed) and isinstance(seed, int) and seed >= 0)
    return fixed and not any(isinstance(tool, str) for tool in asked.tools or ())


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def answer_name(asked: Invocation, *, digests: Sequence[str], code: Sequence[str], context: Any) -> str:
    """The name of the answer; `digests` of all models that it may use, `code` of the agent and parser."""
    parts = asked.model_dump(mode="json", exclude=set(NOT_IN_NAME))
    parts["input"] = [message.model_dump(mode="json") for message in asked.input]
    return fingerprint("answer", FORM, parts, list(digests), list(code), context)


def code_of(thing: Any) -> str:
    """A fingerprint of a class or function: its name and all source files that define it.

    A changed system prompt, mode or parser is another one, also in a file that is edited while developing.
    """
    kinds = inspect.getmro(thing) if inspect.isclass(thing) else (inspect.unwrap(thing),)
    names = [f"{kind.__module__}:{getattr(kind, '__qualname__', kind)}" for kind in kinds]
    prompt = getattr(thing, "system_prompt", None)
    return fingerprint(names, repr(prompt), [_source(_file(kind)) for kind in kinds], version("gaelp-tasks"))


def _file(kind: Any) -> str:
    try:
        return inspect.getsourcefile(kind) or ""
    except TypeError:  # built in
        return ""


@cache
def _source(file: str) -> str:
    """Of the file as this process found it first, which is what it runs."""
    try:
        return sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""


def written(result: InvocationResult) -> str:
    """What of an answer is kept."""
    return result.model_dump_json(include={"text", "tool_calls", "data"})


def read_answer(text: str | None) -> dict[str, Any] | None:
    """Fields of the answer's result; None for anything that is none."""
    try:
        found = json.loads(text or "")
        checked = InvocationResult.model_validate(
            {**found, "id": "", "agent": "", "model": "", "node": "", "tier": "interactive", "priority": 5}
            | {"stop_reason": "stop", "attempts": 1}
        )
    except (ValueError, TypeError):
        return None
    return {name: getattr(checked, name) for name in ("text", "tool_calls", "data")}
