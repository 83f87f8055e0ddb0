"""What goes by reference: the heavy arguments of a long invocation lie beside its message. Pure.

The message keeps what queues, workers and people look at before it runs, and a reference to the rest.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from gaelp_tasks.errors import AttachmentLost
from gaelp_tasks.models.frozen import Frozen

__all__ = [
    "HEAVY",
    "REFERENCE",
    "Packed",
    "Reference",
    "is_reference",
    "light",
    "pack",
    "referring",
    "unpack",
]

REFERENCE = "gaelp_attachment"  #: the header that holds the reference
#: arguments that only the run itself reads: of an invocation, and of an embedding
HEAVY = frozenset(
    {"prompt", "messages", "images", "documents", "options", "format", "tools", "metadata", "input"}
)
WORST = 6  #: JSON may take so many bytes for a character, and a few more for its name
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Reference(Frozen):
    """Where an attachment lies, and how to know it again."""

    place: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]  #: of its key; each publication has its own
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(gt=0, strict=True)]


class Packed(NamedTuple):
    """The arguments of a call, in two parts."""

    given: dict[str, Any]  #: what its message carries
    attachment: bytes | None  #: JSON of the others; None: there are none, the message carries all


def pack(given: Mapping[str, Any], *, above_bytes: int) -> Packed:
    """Put the heavy arguments aside where they take more than `above_bytes` as JSON; 0: never."""
    whole = dict(given)
    if not above_bytes or _is_short(given, above_bytes):
        return Packed(whole, None)
    heavy = {name: given[name] for name in HEAVY & given.keys()}
    text = _to_json(heavy)
    try:
        attachment = text.encode()
    except UnicodeEncodeError:  # half a character in somebody's JSON; escaped it can travel
        attachment = json.dumps(heavy).encode()
    if len(attachment) <= above_bytes:
        return Packed(whole, None)
    return Packed(light(given), attachment)


def _is_short(given: Mapping[str, Any], above_bytes: int) -> bool:
    """Whether that is plain to see: nearly every call is a short prompt and little else."""
    prompt = given.get("prompt")
    return (
        isinstance(prompt, str)
        and len(prompt) * WORST < above_bytes - len('{"prompt":""}')
        and len(HEAVY & given.keys()) == 1
    )


def light(given: Mapping[str, Any]) -> dict[str, Any]:
    """What stays in the message."""
    return {name: value for name, value in given.items() if name not in HEAVY}


def referring(place: str, attachment: bytes) -> Reference:
    """The reference to an attachment that lies there."""
    return Reference(place=place, sha256=sha256(attachment).hexdigest(), size_bytes=len(attachment))


def unpack(reference: Reference, found: bytes) -> dict[str, Any]:
    """The heavy arguments that were found under a reference; nothing there is b''. Raises AttachmentLost."""
    if not found:
        raise AttachmentLost(
            "The prompt lay beside its message, as long ones do, and is not there any more: call it again."
        )
    given = None
    if referring(reference.place, found) == reference:
        with suppress(ValueError, RecursionError):
            given = json.loads(found)
    if not isinstance(given, dict) or not given.keys() <= HEAVY:
        raise AttachmentLost(
            "What lies beside the message in place of its prompt is not what was published: call it again."
        )
    return given


def is_reference(value: Any) -> bool:
    """Whether a header holds a reference, or nothing."""
    try:
        return value is None or Reference.model_validate(value) is not None
    except ValidationError:
        return False
