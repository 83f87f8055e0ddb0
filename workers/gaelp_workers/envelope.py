"""What a message must be before Celery is given it: pure.

Celery looks at parts of a message only when its task has been accepted, runs, or has ended, and what it finds
there then may cost a slot, a result or the message. So all of it is looked at before.
"""

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

from kombu.utils.json import loads

from gaelp_tasks.models.attachment import REFERENCE, is_reference

__all__ = ["fault", "fault_of_broadcast"]

JSON = "application/json"
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError)
MOST_RETRIES = 2**31
LONGEST_S = 10 * 365 * 86_400.0  #: of a time limit


def fault(payload: Mapping[str, Any]) -> str | None:
    """What is wrong with a message that the claim has let through, as a reason for its dead letter.

    None: Celery can run it, or fail it as its own. It is a mapping with the mappings `headers` and
    `properties`, and the text `body`.
    """
    if payload.get("content-type") != JSON:  # its encoding could inflate it, and nothing here reads it
        return "not JSON inside"
    for place, rules in (("header", HEADERS), ("property", PROPERTIES)):
        given = payload["headers" if place == "header" else "properties"]
        wrong = next((name for name, right in rules.items() if not right(given.get(name))), None)
        if wrong is not None:
            return f"malformed {place} {wrong}"
    if not _text(encoding := payload.get("content-encoding")) or encoding not in ENCODINGS:
        return "malformed content-encoding"
    try:
        body = _body(payload)
    except UNREADABLE:
        return "malformed body"
    return _fault_of_body(body)


def fault_of_broadcast(payload: Any) -> str | None:
    """What is wrong with a command or an event that was called out to all; None: Celery can read it."""
    parts = payload if isinstance(payload, dict) else {}
    headers, properties = parts.get("headers"), parts.get("properties")
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        return "no message"
    if headers.get("compression") or parts.get("content-type") != JSON:
        return "compressed, or not JSON inside"
    if not (
        _delivery(properties.get("delivery_info"))
        and _whole(headers.get("clock"))
        and _text(properties.get("delivery_tag"))
    ):
        return "malformed header"
    try:
        body = _body(parts)
    except UNREADABLE:
        return "malformed body"
    each = body if isinstance(body, list) else [body]  # events come in lists, too
    return None if all(map(_command, each)) else "malformed body"


def _command(body: Any) -> bool:
    return isinstance(body, dict) and all(right(body.get(name)) for name, right in COMMAND.items())


def _body(payload: Mapping[str, Any]) -> Any:
    """Raises UNREADABLE."""
    text: Any = payload["body"]
    if payload["properties"].get("body_encoding"):
        text = base64.b64decode(text)
    return loads(text)  # type: ignore[no-untyped-call]


def _fault_of_body(body: Any) -> str | None:
    if isinstance(body, dict) and "args" in body:  # of a sender between protocols 1 and 2
        args, kwargs, embedded = body["args"], body.get("kwargs", {}), body
    elif isinstance(body, list) and len(body) == len(("args", "kwargs", "embedded")):
        args, kwargs, embedded = body
    else:
        return "malformed body"
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embedded, dict):
        return "malformed arguments"
    wrong = next((name for name, right in EMBEDDED.items() if not right(embedded.get(name))), None)
    return f"malformed {wrong}" if wrong is not None else None


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _whole(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < MOST_RETRIES)


def _number(value: Any) -> bool:
    return value is None or (
        type(value) in {int, float} and abs(value) < MOST_SECONDS and math.isfinite(value)
    )


def _limits(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and len(value) == len(("hard", "soft"))
        and all(each is None or (_number(each) and 0 <= each <= LONGEST_S) for each in value)
    )


def _mapping(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _stamps(value: Any) -> bool:
    """Names with what Celery can look for: texts and numbers, alone or in lists."""
    return value is None or (
        isinstance(value, dict)
        and all(
            isinstance(each, str | int | float | None)
            for stamp in value.values()
            for each in (stamp if isinstance(stamp, list) else [stamp])
        )
    )


def _delivery(value: Any) -> bool:
    return isinstance(value, dict) and _text(value.get("exchange")) and _text(value.get("routing_key"))


def _signature(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("task"), str)
        and value["task"] != ""
        and isinstance(value.get("args", []), list)
        and isinstance(value.get("kwargs", {}), dict)
        and isinstance(value.get("options", {}), dict)
    )


def _signatures(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_signature, value)))


def _absent(value: Any) -> bool:
    """What Celery sets itself: a header of this name would stand in its place."""
    return value is None


def _flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


MOST_SECONDS = 1e11  #: as Unix time: the year 5138
ENCODINGS = {None, "", "utf-8", "utf8", "UTF-8", "binary", "us-ascii", "ascii"}
Rules = Mapping[str, Callable[[Any], bool]]
HEADERS: Rules = {
    "lang": _text,
    "shadow": _text,
    "eta": _text,
    "expires": _text,
    "group": _text,
    "group_index": _whole,
    "retries": _whole,
    "timelimit": _limits,
    "root_id": _text,
    "parent_id": _text,
    "argsrepr": _text,
    "kwargsrepr": _text,
    "origin": _text,
    "ignore_result": _flag,
    "replaced_task_nesting": _whole,
    "stamped_headers": _names,
    "stamps": _stamps,
    "gaelp_version": _number,
    "gaelp_published_at": _number,
    REFERENCE: is_reference,
    **dict.fromkeys(("args", "kwargs", "callbacks", "errbacks", "chain", "chord", "is_eager"), _absent),
    **dict.fromkeys(("headers", "logfile", "loglevel", "called_directly", "hostname"), _absent),
}
PROPERTIES: Rules = {
    "correlation_id": _text,
    "reply_to": _text,
    "priority": _whole,
    "body_encoding": lambda value: value in {None, "base64"} if _text(value) else False,
    "delivery_info": _delivery,
}
COMMAND: Rules = {
    "method": _text,
    "arguments": _mapping,
    "destination": lambda value: _text(value) or _names(value),
    "reply_to": lambda value: (
        value is None
        or (
            isinstance(value, dict)
            and isinstance(value.get("exchange"), str)
            and isinstance(value.get("routing_key"), str)
        )
    ),
}
EMBEDDED: Rules = {
    "callbacks": _signatures,
    "errbacks": _signatures,
    "chain": _signatures,
    "chord": lambda value: value is None or _signature(value),
}
