"""Ollama's protocol as data, what nodes are asked."""

import json
import math
from collections.abc import Mapping
from typing import Any

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models import Message, ToolCall

__all__ = ["body", "chat_request", "keep_alive_value"]

#: Keywords that Ollama would ignore in silence as unknown options, and what to do instead.
NOT_OPTIONS = {
    "num_ctx": "num_ctx is one value per model: give it to the client (GAELP_NUM_CTX)",
    "keep_alive": "keep_alive belongs to the client (GAELP_KEEP_ALIVE_S)",
    "options": "give model options by name, as in temperature=0.2",
    "stream": "chat always streams; get_full_response of an agent gives the whole text",
}


def body(request: Mapping[str, Any]) -> bytes:
    """JSON bytes. Raises InvalidInvocation for what JSON cannot say (NaN, a set, an object)."""
    try:
        return json.dumps(request, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInvocation(f"The request cannot be written as JSON: {error}.") from None


def chat_request(
    messages: tuple[Message, ...],
    *,
    model: str,
    keep_alive: float | str,
    num_ctx: int,
    format: Any,  # noqa: A002  the name of Ollama's own field
    tools: Any,
    think: Any,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What POST /api/chat takes. Raises InvalidInvocation for keywords that are no model options."""
    for name, instead in NOT_OPTIONS.items():
        if name in options:
            raise InvalidInvocation(f"{name} is no model option: {instead}.")
    asked = {"format": format, "tools": list(tools) if tools else None, "think": think}
    set_options = {name: value for name, value in options.items() if value is not None}
    if num_ctx > 0:
        set_options["num_ctx"] = num_ctx
    return {
        "model": model,
        "messages": [_message(message) for message in messages],
        "stream": True,
        "keep_alive": keep_alive,
        **({"options": set_options} if set_options else {}),
        **{name: value for name, value in asked.items() if value is not None},
    }


def _message(message: Message) -> dict[str, Any]:
    given = message.model_dump(mode="json", exclude_none=True, exclude={"tool_calls"})
    if message.tool_calls:
        given["tool_calls"] = [_tool_call_out(call) for call in message.tool_calls]
    return given


def _tool_call_out(call: ToolCall) -> dict[str, Any]:
    # by hand: exclude_none would also drop an argument that is null
    function: dict[str, Any] = {"name": call.function.name, "arguments": call.function.arguments}
    if call.function.index is not None:
        function["index"] = call.function.index
    return {"function": function} if call.id is None else {"id": call.id, "function": function}


def keep_alive_value(keep_alive: float | str) -> float | str:
    """In the form that Ollama takes: whole seconds as a number, else a Go duration; negative is for ever.

    Ollama refuses "300" (a string without a unit) and cuts 0.5 down to 0, which means unload at once.
    """
    try:
        seconds = float(keep_alive)
    except ValueError:
        return keep_alive
    if seconds < 0 or not math.isfinite(seconds):
        return -1
    return int(seconds) if seconds.is_integer() else f"{seconds:.3f}s"
