"""The base of all our data: immutable, strict about unknown fields, silent about its values in errors."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, JsonValue

__all__ = ["Frozen", "JsonObject", "JsonText", "well_formed"]

DEEPEST = 64  #: levels of a JSON value; readers recurse


class Frozen(BaseModel):
    """A value: frozen, unknown fields and NaN refused, inputs kept out of error texts (may be prompts)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


def _portable(value: Any, level: int = 0) -> Any:
    """Refuse what another JSON reader would not take: NaN, infinities, bottomless nesting."""
    if level > DEEPEST:
        raise ValueError(f"JSON is nested deeper than {DEEPEST} levels")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in inner:
        _portable(item, level + 1)
    return value


def well_formed(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 can hold, replaced by '?'."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a character (a lone surrogate)") from None
    return value


JsonText = Annotated[str, AfterValidator(_encodable)]  #: text that can be written as UTF-8
JsonObject = Annotated[dict[str, JsonValue], BeforeValidator(_portable)]  #: finite, not too deep
