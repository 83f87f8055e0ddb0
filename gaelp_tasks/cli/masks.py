"""What Flower may show of tasks: whose they are and how they fare, never what was asked or answered.

Every sender may put arguments into its events, so nothing is shown because of where it came from, only
because of what it looks like.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["HIDDEN", "masked_event", "masked_failure", "masked_inspection", "masked_result"]

HIDDEN = "(hidden)"
#: the summaries of `Invocation.summary`, `Embedding.summary` and our worker's request
SUMMARY = re.compile(r"\{\}|(?:(?:agent|model|tier|priority|texts)=[\w.:/@-]{1,100}(?: |$))+")
USUAL = frozenset({"model=default", "priority=5"})  #: said of most calls, and no news
#: how a `Reply` prints itself, and what tells nothing
RESULT = re.compile(r"<[a-z_]{1,20}(?:, \d+ [a-z]{1,20})*>|None|True|False|-?\d{1,20}(?:\.\d+)?")
CLASS_NAME = re.compile(r"(?:\w{1,80}\.){0,9}(\w{1,80})\(")
#: one call; the `File` line of a SyntaxError, which its text follows, ends otherwise
FRAME = re.compile(r'  File "[^"]+", line \d+, in [\w<>.]+')
#: of a task's event; args, kwargs, result, exception and traceback are masked
FIELDS = frozenset(
    (
        *("type", "uuid", "name", "hostname", "timestamp", "local_received", "clock", "utcoffset", "pid"),
        *("freq", "client", "queue", "exchange", "routing_key", "root_id", "parent_id", "retries", "eta"),
        *("expires", "runtime", "terminated", "signum", "expired", "requeue"),
    )
)
#: what `inspect` answers with tasks in it
WITH_TASKS = frozenset({"active", "reserved", "scheduled"})


def masked_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event as Flower may keep it."""
    if not str(event.get("type")).startswith("task-"):
        return dict(event)
    shown = {name: value for name, value in event.items() if name in FIELDS}
    if "args" in event:
        shown["args"] = _args(event["args"])
    if "kwargs" in event:
        shown["kwargs"] = _kwargs(event["kwargs"])
    if "result" in event:
        text = str(event["result"])
        shown["result"] = text if RESULT.fullmatch(text) else HIDDEN
    if "exception" in event:
        shown["exception"] = masked_failure(event["exception"])
    if event.get("traceback"):
        shown["traceback"] = _traceback(str(event["traceback"]))
    return shown


def masked_inspection(method: str, answer: Any) -> Any:
    """What a worker answered to `inspect`, as Flower may keep it."""
    if method not in WITH_TASKS:
        return answer
    return [
        told | {"request": _masked_request(told["request"])} if "request" in told else _masked_request(told)
        for told in answer
    ]


def masked_result(result: Any) -> str:
    """A stored result."""
    match result:
        case {"stop_reason": str(reason), "usage": {"completion_tokens": int(tokens)}}:
            text = f"<{reason}, {tokens} tokens>"
        case _:
            text = str(result)
    return text if RESULT.fullmatch(text) else HIDDEN


def masked_failure(failure: object) -> str:
    """The class of an exception, or of its repr; its message may quote anything."""
    if isinstance(failure, BaseException):
        return type(failure).__name__
    name = CLASS_NAME.match(str(failure))
    return name[1] if name else HIDDEN


def _masked_request(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "args": _args(told.get("args")), "kwargs": _kwargs(told.get("kwargs"))}


def _args(value: object) -> str:
    return "()" if value in ("()", "[]", (), [], None) else HIDDEN


def _kwargs(value: object) -> str:
    if not value:
        return "{}"
    if not isinstance(value, str) or not SUMMARY.fullmatch(value):
        return HIDDEN
    return " ".join(word for word in value.split() if word not in USUAL) or "{}"


def _traceback(text: str) -> str:
    """The calls of the innermost traceback, without source lines and messages."""
    frames = [line for line in _first_block(text.splitlines()) if FRAME.fullmatch(line)]
    return "\n".join([*frames, "message hidden: `gaelp show ID` and the worker's log tell it"])


def _first_block(lines: Sequence[str]) -> Sequence[str]:
    """Up to the first exception: after it, a line may be a part of its message and look like a call."""
    for number, line in enumerate(lines[1:], start=1):
        if not line.startswith("  "):
            return lines[1:number]
    return lines[1:]
