"""Texts and JSON that both databases can hold: PostgreSQL takes no NUL, and UTF-8 no half characters."""

import json
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue

from gaelp_tasks.models.frozen import JsonObject, JsonText

__all__ = ["LONGEST_ID", "Id", "StoredObject", "StoredText", "Units", "Version", "micro", "units"]

LONGEST_ID = 2**63 - 1  #: what a column holds
MICRO = 1_000_000
MOST_UNITS = 8e9  #: above 2**33 floats are more than a micro-unit apart
OBJECT_BYTES = 256 * 1024  #: of one JSON object


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("the text holds a NUL")
    return value


def _storable(value: Any) -> None:
    if isinstance(value, str):
        _without_nul(value)
        value.encode()  # UnicodeEncodeError is a ValueError
    inner = value if isinstance(value, list | tuple) else ()
    if isinstance(value, Mapping):
        inner = [*value, *value.values()]
    for item in inner:
        _storable(item)


def _kept(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        _storable(value)
    except UnicodeEncodeError:
        raise ValueError("a text in it holds half a character (a lone surrogate)") from None
    if len(json.dumps(value)) > OBJECT_BYTES:
        raise ValueError(f"it takes more than {OBJECT_BYTES // 1024} KiB")
    return value


def micro(units: float) -> int:
    """Whole micro-units of an amount of money."""
    return int((Decimal(str(units)) * MICRO).to_integral_value(ROUND_HALF_UP))


def units(amount_micro: int) -> float:
    """The amount as JSON has it."""
    return amount_micro / MICRO


StoredText = Annotated[JsonText, AfterValidator(_without_nul)]
StoredObject = Annotated[JsonObject, AfterValidator(_kept)]  #: finite, not too deep, not too large
Units = Annotated[float, Field(ge=0, le=MOST_UNITS)]  #: of the currency; counted in micro-units
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]  #: the number of one
Id = Annotated[int, Field(ge=1, le=LONGEST_ID)]  #: of a row
