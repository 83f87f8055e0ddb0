"""The files of a batch: lines in two forms in, results and errors in the form of their lines out. Pure.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}       OpenAI's
    {"custom_id": "a", "prompt": "...", "model": "llama3.2:3b"}                              ours

Ours takes `prompt` or `messages` with any argument of `invoke_agent`, or `input` with any argument of
`embed`; without a custom_id the number of the line is its id.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO, NamedTuple

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.invocation import Embedding, Invocation, Tier
from gaelp_tasks.models.openai import (
    CHAT,
    EMBEDDINGS,
    chat_arguments,
    chat_completion,
    embedding_arguments,
    embedding_list,
)

__all__ = [
    "LONGEST_ID",
    "BadLine",
    "Defaults",
    "EndedLine",
    "Form",
    "Line",
    "Reader",
    "numbered",
    "record",
]

LONGEST_ID = 200  #: characters of a custom_id
PIECE = 64 * 1024  #: of what is skipped at once, bytes
BOM = b"\xef\xbb\xbf"  #: what some editors put first
#: what belongs to the batch as a whole, or would give a line another id
NOT_OF_A_LINE = {
    "idempotency_key": "the custom_id is the key of a line",
    "tenant": "it belongs to the batch",
}
#: what has no code of its own: its batch has ended before it
CODES = {
    LineOutcome.EXPIRED: "batch_expired",
    LineOutcome.CANCELLED: "batch_cancelled",
    LineOutcome.FAILED: "batch_failed",
}


class Form(StrEnum):
    """How a line was written, and so how its answer is."""

    OWN = "own"
    CHAT = "openai-chat"
    EMBEDDINGS = "openai-embed"


FORMS = {CHAT: Form.CHAT, EMBEDDINGS: Form.EMBEDDINGS}


class Defaults(NamedTuple):
    """What lines get that do not say it themselves; of two tiers the lower one counts."""

    tier: Tier = Tier.BATCH
    model: str | None = None
    agent: str | None = None


class Line(NamedTuple):
    """A line that can be run."""

    number: int  #: in its file, from 1
    custom_id: str
    form: Form
    embeds: bool  #: it is for `gaelp.embed`
    arguments: str  #: of the task, as JSON


class BadLine(NamedTuple):
    """A line that cannot."""

    number: int
    custom_id: str | None  #: None where it has none that can be used
    form: Form
    why: str  #: one sentence, without its text


class EndedLine(NamedTuple):
    """A line with its outcome."""

    number: int
    custom_id: str | None
    form: Form
    embeds: bool
    outcome: LineOutcome
    code: str  #: of the error, '' where there is none
    why: str  #: the error in one sentence
    task_id: str
    ended_at_s: float  #: Unix seconds
    result: str  #: the result mapping as JSON; '' where there is none


def numbered(file: BinaryIO, *, most_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Every line of a file with its number, blank ones left out; None for one longer than `most_bytes`.

    Whatever is in the file, no more than one line of that length is in memory.
    """
    number = 0
    while raw := file.readline(most_bytes + 2):  # a carriage return and a line feed may end it
        number += 1
        is_whole = raw.endswith(b"\n")
        line = raw.rstrip(b"\r\n")
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) > most_bytes or (len(raw) == most_bytes + 2 and not is_whole):
            while not is_whole and (rest := file.readline(PIECE)):
                is_whole = rest.endswith(b"\n")
            yield number, None
        elif line.strip():
            yield number, line


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes requests of lines; `check` may refuse names that are not known, by raising InvalidInvocation."""

    defaults: Defaults
    most_bytes: int  #: of a line
    max_prompt_bytes: int
    check: Callable[[Invocation], None] = lambda _: None

    def read(self, number: int, raw: bytes | None) -> Line | BadLine:
        """The request of a line, or what is wrong with it in one sentence that does not repeat its text.

        `raw` is None for a line that was longer than `most_bytes`.
        """
        custom_id, form = None, Form.OWN
        try:
            told = _object(raw, self.most_bytes)
            form = _form(told)
            custom_id = _custom_id(told, number, form)
            embeds, arguments = _asked(told, form)
            wire = self._checked(arguments, embeds=embeds)
        except InvalidInvocation as error:
            return BadLine(number, custom_id, form, str(error))
        return Line(number, custom_id, form, embeds, json.dumps(wire))

    def _checked(self, arguments: dict[str, Any], *, embeds: bool) -> dict[str, Any]:
        """The arguments as they will travel. Raises InvalidInvocation."""
        given = {name: value for name, value in arguments.items() if value is not None}
        given.setdefault("model", self.defaults.model)
        tier = given.get("tier", self.defaults.tier)
        if tier not in list(Tier):
            raise InvalidInvocation(f"tier: give {' or '.join(Tier)}.")
        given["tier"] = max(Tier(tier), self.defaults.tier, key=lambda one: one.rank)
        if embeds:
            return Embedding.parse(given, max_prompt_bytes=self.max_prompt_bytes).wire()
        if self.defaults.agent is not None:
            given.setdefault("agent", self.defaults.agent)
        invocation = Invocation.parse(given, max_prompt_bytes=self.max_prompt_bytes)
        self.check(invocation)
        return invocation.wire()


def _object(raw: bytes | None, most_bytes: int) -> dict[str, Any]:
    if raw is None:
        raise InvalidInvocation(f"The line is longer than {most_bytes:,} bytes (GAELP_MAX_MESSAGE_BYTES).")
    try:
        told = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidInvocation(f"The line is not UTF-8 (at byte {error.start + 1}).") from None
    except json.JSONDecodeError as error:
        raise InvalidInvocation(f"The line is not JSON ({error.msg} at character {error.pos + 1}).") from None
    except ValueError:
        raise InvalidInvocation("The line is not JSON (a number has too many digits).") from None
    except RecursionError:
        raise InvalidInvocation("The line is nested too deeply.") from None
    if not isinstance(told, dict):
        raise InvalidInvocation("The line is no JSON object.")
    return told


def _form(told: Mapping[str, Any]) -> Form:
    """OpenAI's where any of its three words is there."""
    if told.keys().isdisjoint({"method", "url", "body"}):
        return Form.OWN
    url = told.get("url")
    return FORMS.get(url, Form.CHAT) if isinstance(url, str) else Form.CHAT


def _custom_id(told: Mapping[str, Any], number: int, form: Form) -> str:
    given = told.get("custom_id")
    if given is None and form is Form.OWN:
        return str(number)
    if not isinstance(given, str) or not given or len(given) > LONGEST_ID:
        raise InvalidInvocation(f"custom_id: give a text of 1 to {LONGEST_ID} characters.")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise InvalidInvocation("custom_id: the text holds half a character (a lone surrogate).") from None
    if "\0" in given:  # no database takes it
        raise InvalidInvocation("custom_id: the text holds a NUL.")
    return given


def _asked(told: dict[str, Any], form: Form) -> tuple[bool, dict[str, Any]]:
    """Whether it embeds, and the arguments."""
    given = {name: value for name, value in told.items() if name != "custom_id"}
    if form is Form.OWN:
        for name, why in NOT_OF_A_LINE.items():
            if given.get(name) is not None:
                raise InvalidInvocation(f"{name}: {why}.")
        return given.get("input") is not None, given
    method, url, body = (given.pop(name, None) for name in ("method", "url", "body"))
    if given:
        raise InvalidInvocation("A line of this form has custom_id, method, url and body, and nothing else.")
    if method not in {None, "POST"}:
        raise InvalidInvocation("method: only POST is supported.")
    if not isinstance(url, str) or url not in FORMS:
        raise InvalidInvocation(f"url: only {' and '.join(FORMS)} are supported.")
    if not isinstance(body, dict):
        raise InvalidInvocation("body: give a JSON object.")
    return (False, chat_arguments(body)) if form is Form.CHAT else (True, embedding_arguments(body))


def record(line: EndedLine) -> dict[str, Any]:
    """What the file of results, or that of errors, says of a line; in the form in which it asked."""
    result = json.loads(line.result) if line.result else None
    done = line.outcome is LineOutcome.DONE
    error = None if done else {"code": _code(line), "message": line.why, "line": line.number}
    if line.form is Form.OWN:
        return {"custom_id": line.custom_id, "result": result, "error": error}
    answer = None
    if done and result is not None:
        created = int(line.ended_at_s)
        embeds = line.form is Form.EMBEDDINGS
        body = embedding_list(result) if embeds else chat_completion(result, created=created)
        answer = {"status_code": 200, "request_id": line.task_id, "body": body}
    request_id = f"batch_req_{line.task_id or line.number}"
    return {"id": request_id, "custom_id": line.custom_id, "response": answer, "error": error}


def _code(line: EndedLine) -> str:
    return line.code or CODES.get(line.outcome, line.outcome.value)
