"""The form that an answer shall have: a pydantic class, a JSON schema or any JSON, and what fits it."""

import json
import re
from typing import Any, NoReturn, Protocol, Self, TypeVar

from pydantic import JsonValue, TypeAdapter, ValidationError

from gaelp_tasks.errors import AnswerUnfit
from gaelp_tasks.models.frozen import JsonObject

__all__ = ["Shape", "as_format", "as_json", "fit", "read_json"]


class Shape(Protocol):
    """What every pydantic class can do."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """Its JSON schema."""

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray) -> Self:
        """An instance. Raises ValidationError."""


S = TypeVar("S", bound=Shape)

_anything: TypeAdapter[Any] = TypeAdapter(Any)
_portable: TypeAdapter[JsonObject] = TypeAdapter(JsonObject)
FENCED = re.compile(r"\s*(`{3,}|~{3,})[^\n]*\n(.*?)\n?\s*\1\s*", re.DOTALL)


def as_format(value: Any) -> Any:
    """A pydantic class as its JSON schema; everything else as it is."""
    schema = getattr(value, "model_json_schema", None) if isinstance(value, type) else None
    return schema() if callable(schema) else value


def fit(text: str, model: type[S]) -> S:
    """The instance that an answer's JSON describes. Raises AnswerUnfit, which does not repeat the text."""
    name = getattr(model, "__name__", "that class")
    try:
        return model.model_validate_json(_unfenced(text))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise AnswerUnfit(f"The answer is no {name}: {place}: {first['msg'].rstrip('.')}.") from None


def read_json(text: str) -> JsonValue:
    """The JSON value that an answer is. Raises ValueError where it is none, or is cut."""
    try:
        return as_json(json.loads(_unfenced(text), parse_constant=_no_number))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def as_json(value: Any) -> JsonValue:
    """Pydantic models, dataclasses, dates and the like as JSON values; NaN and infinities as null.

    Raises ValueError for what JSON has no form for, and for bottomless nesting.
    """
    plain = _anything.dump_python(value, mode="json", warnings=False)
    return _portable.validate_python({"value": plain})["value"]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unfenced(text: str) -> str:
    """Models without a grammar like to put their JSON into a fence."""
    found = FENCED.fullmatch(text)
    return found[2] if found else text
