"""Turn a chat request into plain turns for the chat template, and tools into a forced JSON answer.

Small models have no tool section in their template, and llama.cpp then drops `tools` silently (its issue
#27129). So the functions are described in the system turn and the answer is held to a schema that admits
nothing but a call. Once a tool has answered, the model writes plain text.
"""

import json
from collections.abc import Sequence
from typing import Any

from gaelp_tasks.demo.model_server.wire import Message, Tool, ToolFunction

Turn = dict[str, str]


def turns(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Turn]:
    """The conversation as (role, content) turns of text, the tools told in its first system turn."""
    plain = [_turn(message) for message in messages]
    if tools and asks_for_call(messages, tools):
        plain = _with_system(plain, _about(tools))
    return plain


def asks_for_call(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    """Whether the next turn must be a call: there are tools, and the last word is not a tool's."""
    return bool(tools) and messages[-1].role != "tool"


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """JSON schema of one call of any of `tools`."""
    return {"anyOf": [_call_of(tool.function) for tool in tools]}


def read_call(text: str) -> dict[str, Any] | None:
    """Ollama's `tool_calls` entry for an answer held to `call_schema`; None when it was cut short."""
    try:
        call = json.loads(text)
    except ValueError:
        return None
    return {"function": {"name": call["name"], "arguments": call["arguments"]}}


def without_oldest(plain: Sequence[Turn]) -> list[Turn] | None:
    """The conversation less its oldest turn that is not the system's; None when only the last is left.

    The beginning of an answer, which the engine goes on with, is no turn without its question.
    """
    kept = 2 if plain[-1]["role"] == "assistant" else 1
    oldest = next((at for at, turn in enumerate(plain[:-kept]) if turn["role"] != "system"), None)
    return None if oldest is None else [*plain[:oldest], *plain[oldest + 1 :]]


def _turn(message: Message) -> Turn:
    if message.role == "tool":
        source = f"The function {message.tool_name}" if message.tool_name else "The function"
        return {
            "role": "user",
            "content": f"{source} returned: {message.content}\nAnswer my question with it.",
        }
    if message.tool_calls:
        calls = [call.function.model_dump() for call in message.tool_calls]
        return {"role": "assistant", "content": "\n".join(json.dumps(call) for call in calls)}
    return {"role": message.role, "content": message.content or ""}


def _with_system(plain: Sequence[Turn], text: str) -> list[Turn]:
    if plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{text}"}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def _about(tools: Sequence[Tool]) -> str:
    functions = "\n".join(f"- {_signature(tool.function)}" for tool in tools)
    return (
        "You can call these functions:\n"
        f"{functions}\n"
        'Answer with one JSON object {"name": ..., "arguments": {...}}: the call that fits the question.'
    )


def _signature(function: ToolFunction) -> str:
    """A function in one line; a small model copies whatever schema it is shown instead of filling it."""
    properties = function.parameters.get("properties", {})
    arguments = ", ".join(f"{name}: {_type(schema)}" for name, schema in properties.items())
    return f"{function.name}({arguments}): {function.description}".removesuffix(": ")


def _type(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    return str(schema.get("type", "any"))


def _call_of(function: ToolFunction) -> dict[str, Any]:
    # Without this a model may go on adding arguments for ever.
    arguments = {"type": "object", "additionalProperties": False, **function.parameters}
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
