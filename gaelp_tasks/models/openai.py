"""OpenAI's request bodies as arguments of ours, and our results as OpenAI's answers. Pure.

What a body asks for and no node can do is refused by its name: an answer that silently left it out would be
taken for one that has it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gaelp_tasks.errors import InvalidInvocation

__all__ = ["CHAT", "EMBEDDINGS", "chat_arguments", "chat_completion", "embedding_arguments", "embedding_list"]

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

#: sampling parameters -> Ollama's names for them
OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
}
#: fields that may only say what happens anyway
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "store": (False,),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
    "logit_bias": ({},),
    "tool_choice": ("auto", "none"),
}
EFFORTS: dict[str, bool | str] = {"none": False, "low": "low", "medium": "medium", "high": "high"}
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,(.*)", re.DOTALL)
FINISH = {"length": "length", "stop": "stop"}


def chat_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `gaelp.invoke_agent` for a body of /v1/chat/completions. Raises InvalidInvocation."""
    given = {name: value for name, value in body.items() if value is not None}
    messages = given.pop("messages", None)
    if not isinstance(messages, list):
        raise InvalidInvocation("messages: give a list of messages.")
    asked: dict[str, Any] = {
        "model": _model(given.pop("model", None)),
        "messages": [_message(message) for message in messages],
    }
    options = {OPTIONS[name]: given.pop(name) for name in tuple(given) if name in OPTIONS}
    if "stop" in options:
        options["stop"] = _stops(options["stop"])
    if options:
        asked["options"] = options
    if "response_format" in given:
        asked["format"] = _format(given.pop("response_format"))
    if "reasoning_effort" in given:
        asked["think"] = _effort(given.pop("reasoning_effort"))
    if "tools" in given:
        tools = given.pop("tools")
        asked["tools"] = tools if given.get("tool_choice") != "none" else None
    metadata, user = given.pop("metadata", {}), given.pop("user", None)
    if user is not None and isinstance(metadata, dict):
        metadata = metadata | {"user": user}
    asked["metadata"] = metadata or None
    _refuse_rest(given, CHAT)
    return {name: value for name, value in asked.items() if value is not None}


def embedding_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `gaelp.embed` for a body of /v1/embeddings. Raises InvalidInvocation."""
    given = {name: value for name, value in body.items() if value is not None}
    asked = {"model": _model(given.pop("model", None)), "input": given.pop("input", None)}
    if not isinstance(asked["input"], str | list):
        raise InvalidInvocation("input: give a text or a list of texts.")
    if given.pop("encoding_format", "float") != "float":
        raise InvalidInvocation("encoding_format: only float is supported.")
    if "user" in given:
        asked["metadata"] = {"user": given.pop("user")}
    _refuse_rest(given, EMBEDDINGS)
    return asked


def _stops(stop: Any) -> list[str]:
    """OpenAI takes one text for a list of one; Ollama does not."""
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise InvalidInvocation("stop: give a text or a list of texts.")
    return stops


def _model(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidInvocation("model: name the model.")
    return name


def _refuse_rest(given: Mapping[str, Any], endpoint: str) -> None:
    for name, value in given.items():
        if name not in ONLY:
            raise InvalidInvocation(f"{_named(name)} is not supported in a body of {endpoint}.")
        if not any(type(value) is type(only) and value == only for only in ONLY[name]):
            allowed = " or ".join(json.dumps(only) for only in ONLY[name])
            raise InvalidInvocation(f"{name}: only {allowed} is supported.")


def _named(name: str) -> str:
    """A field as it was given; what does not look like a name may be a misplaced prompt."""
    return f"The field {name}" if re.fullmatch(r"\w{1,40}", name) else "A field of another name"


def _message(told: Any) -> dict[str, Any]:
    if not isinstance(told, Mapping):
        raise InvalidInvocation("messages: each must be an object.")
    made = {name: value for name, value in told.items() if value is not None}
    if made.get("role") == "developer":
        made["role"] = "system"
    if "name" in made:
        if made.get("role") != "tool":
            raise InvalidInvocation("messages: name is not supported, put it into the content.")
        made["tool_name"] = made.pop("name")
    content = made.get("content")
    if isinstance(content, list):
        made |= _parts(content)
    if "tool_calls" in made:
        made["tool_calls"] = [_call(call) for call in _listed(made["tool_calls"])]
    return made


def _parts(content: Sequence[Any]) -> dict[str, Any]:
    """Texts and pictures of a message whose content is a list."""
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                found = DATA_URL.fullmatch(url)
                if found is None:
                    raise InvalidInvocation("messages: a picture must be a data:image/...;base64, address.")
                images.append(found[1])
            case _:
                raise InvalidInvocation("messages: a part must be a text or an image_url.")
    return {"content": "\n".join(texts)} | ({"images": images} if images else {})


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInvocation("messages: tool_calls must be a list.")
    return value


def _call(call: Any) -> dict[str, Any]:
    """A tool call, whose arguments OpenAI writes as a text."""
    match call:
        case {"function": {"name": str(name), "arguments": str(text)}}:
            try:
                arguments = json.loads(text or "{}")
            except (ValueError, RecursionError):
                raise InvalidInvocation("messages: the arguments of a tool call are no JSON.") from None
            told = {"function": {"name": name, "arguments": arguments}}
            return told | ({"id": call["id"]} if call.get("id") is not None else {})
    raise InvalidInvocation("messages: a tool call needs a function with name and arguments.")


def _format(told: Any) -> Any:
    match told:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": schema}} if isinstance(schema, dict):
            return schema
    raise InvalidInvocation("response_format: give text, json_object, or json_schema with its schema.")


def _effort(told: Any) -> bool | str:
    if not isinstance(told, str) or told not in EFFORTS:
        raise InvalidInvocation(f"reasoning_effort: give {', '.join(EFFORTS)}.")
    return EFFORTS[told]


def chat_completion(result: Mapping[str, Any], *, created: int) -> dict[str, Any]:
    """The body of an answer for our result mapping; `created` in Unix seconds."""
    calls = [
        {
            "id": call.get("id") or f"call_{number}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for number, call in enumerate(result.get("tool_calls") or ())
    ]
    usage = result["usage"]
    message = {"role": "assistant", "content": result["text"], "refusal": None}
    return {
        "id": f"chatcmpl-{result['id']}",
        "object": "chat.completion",
        "created": created,
        "model": result["model"],
        "choices": [
            {
                "index": 0,
                "message": message | ({"tool_calls": calls} if calls else {}),
                "logprobs": None,
                "finish_reason": "tool_calls" if calls else FINISH.get(result["stop_reason"], "stop"),
            }
        ],
        "usage": {
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        },
    }


def embedding_list(result: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an answer for our result mapping of an embedding."""
    tokens = result["usage"]["prompt_tokens"]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(result["embeddings"])
        ],
        "model": result["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
