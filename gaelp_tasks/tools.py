"""Python functions that a model may call: schemas from type hints, arguments checked before the call."""

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from gaelp_tasks.models.frozen import JsonObject, well_formed
from gaelp_tasks.models.shape import as_json
from gaelp_tasks.threads import in_thread

__all__ = ["RESULT_CHARS", "Tool", "ToolRun"]

RESULT_CHARS = 16_000  #: of a result; a longer one is cut before the model reads it
ERROR_CHARS = 500

PARAMETER = re.compile(r"^[ \t]*(?::param[ \t]+)?(\w+)[ \t]*(?:\([^)\n]*\))?:[ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """One call and what came of it: the text that the model reads."""

    name: str
    arguments: JsonObject
    text: str
    result: Any = None  #: JSON; the cut text where it was too long
    failed: bool = False

    def data(self) -> JsonObject:
        """As it stands in `data["tool_runs"]`."""
        came = {"error": self.text} if self.failed else {"result": self.result}
        return {"name": self.name, "arguments": self.arguments, **came}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function under a name."""

    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[BaseModel]  #: its fields are the parameters, each by its alias

    @staticmethod
    @cache
    def of(function: Callable[..., Any], name: str) -> "Tool":
        """Read a function's signature, type hints and docstring.

        The docstring's first paragraph describes it, a line `parameter: text` a parameter; so does
        Annotated[..., Field(description=...)]. Raises ValueError for what no schema can say.
        """
        if not callable(function):
            raise ValueError(  # noqa: TRY004  one kind of error for whatever cannot be a tool
                f"The tool '{name}' must be a function, not {type(function).__name__}."
            )
        called = function if inspect.isroutine(function) else type(function).__call__
        told = inspect.getdoc(function) or ""
        about = dict(PARAMETER.findall(told))
        try:
            hints = get_type_hints(called, include_extras=True)
            fields = {
                f"at_{at}": _field(name, parameter, hints, about.get(parameter.name))
                for at, parameter in enumerate(inspect.signature(function).parameters.values())
            }
            arguments = create_model(name, __config__=_STRICT, **fields)  # type: ignore[call-overload]
            arguments.model_json_schema()
        except (NameError, TypeError, PydanticUserError) as error:
            raise ValueError(f"The tool '{name}' has no schema: {_first_line(error)}.") from None
        first = " ".join(told.partition("\n\n")[0].split())
        return Tool(name=name, description=first, function=function, arguments=arguments)

    @property
    def schema(self) -> JsonObject:
        """As Ollama's `tools` have it."""
        parameters = _untitled(self.arguments.model_json_schema())
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }

    async def run(self, arguments: Mapping[str, Any], *, timeout_s: float) -> ToolRun:
        """Call it; whatever goes wrong is a sentence for the model, never an exception.

        A synchronous function runs in a thread; after its time it is no longer waited for, but a thread
        cannot be stopped.
        """
        given = dict(arguments)
        try:
            checked = self.arguments.model_validate(given)
        except ValidationError as error:
            return self.failed(given, f"The arguments do not fit: {_complaints(error)}.")
        values = {
            field.alias or name: getattr(checked, name)
            for name, field in type(checked).model_fields.items()
            if name in checked.model_fields_set
        }
        try:
            async with asyncio.timeout(timeout_s):
                result = as_json(await self._call(values))
        except TimeoutError:
            return self.failed(given, f"It did not answer within {timeout_s:g} s.")
        except (Exception, SystemExit) as error:  # noqa: BLE001  the model is told, and may do without
            return self.failed(given, f"It failed: {type(error).__name__}: {_first_line(error)}.")
        text = well_formed(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))
        if len(text) > RESULT_CHARS:
            text = f"{text[:RESULT_CHARS]} ... ({len(text) - RESULT_CHARS:,} more characters were cut)"
            result = text
        return ToolRun(name=self.name, arguments=given, text=text, result=result)

    def failed(self, arguments: JsonObject, sentence: str) -> ToolRun:
        """A call that brought no result."""
        return ToolRun(name=self.name, arguments=arguments, text=f"Error: {sentence}", failed=True)

    async def _call(self, values: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**values)
        result = await in_thread(self.function, **values)
        return await result if inspect.isawaitable(result) else result


_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)


def _untitled(schema: Any, *, names: bool = False) -> Any:
    """Without titles, which say nothing and cost tokens; `names`: the keys are parameters, not keywords."""
    if isinstance(schema, list):
        return [_untitled(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _untitled(value, names=not names and key in {"properties", "$defs"})
        for key, value in schema.items()
        if names or key != "title"
    }


def _field(
    tool: str, parameter: inspect.Parameter, hints: Mapping[str, Any], about: str | None
) -> tuple[Any, Any]:
    if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
        raise ValueError(
            f"The tool '{tool}': {parameter.name} cannot be given by its name; use plain parameters."
        )
    if parameter.name not in hints:
        raise ValueError(f"The tool '{tool}': give {parameter.name} a type hint, the model is told by it.")
    default = ... if parameter.default is parameter.empty else parameter.default
    told = (
        Field(default, alias=parameter.name, description=about)
        if about
        else Field(default, alias=parameter.name)
    )
    return hints[parameter.name], told


def _complaints(error: ValidationError) -> str:
    told = [
        f"{'.'.join(str(part) for part in one['loc'])}: {one['msg'].rstrip('.')}"
        for one in error.errors(include_input=False, include_url=False)
    ]
    return "; ".join(told)[:ERROR_CHARS]


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(". ")
    return text[:ERROR_CHARS] or "no reason was given"
