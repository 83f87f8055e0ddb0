"""Messages made wrong, at every level a message has. Pure: the generator decides everything.

A mutant is whatever a broken, old or hostile sender could have put into a queue. Values that JSON libraries
do not write (NaN, the same name twice, ten thousand brackets) are put in as raw text.
"""

import base64
import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

__all__ = ["LEVELS", "Mutant", "mutate"]

DEEP = 10_000  #: brackets; JSON parsers give up long before
SHALLOW = 900  #: brackets; Redis' parser reads these, Python's gives up or does not
LONG = 70_000  #: characters
TASKS = (
    "",
    "nobody.knows.it",
    "gaelp.embed",
    "gaelp.invoke_agent",
    "gaelp.maintenance.expire_abandoned_streams",
    "celery.accumulate",
    "celery.chain",
    "celery.chord",
    "celery.chord_unlock",
    "celery.chunks",
    "celery.group",
    "celery.map",
    "celery.starmap",
    "os.system",
    "gaelp.invoke_agent\n",
    "x" * 300,
)
TIMES = (
    "2020-01-01T00:00:00",
    "2020-01-01T00:00:00.123456+00:00",
    "2031-01-01T00:00:00+05:30",
    "2031-01-01T00:00:00+05",
    "2031-01-01",
    "20310101T000000Z",
    "2031-W01-1T00:00",
    "2031-99-99T99:99:99",
    "0000-00-00T00:00:00",
    "9999-12-31T23:59:59-23:59",
    "2020-01-01T00:00:00 rubbish",
    "tomorrow",
    1e12,
)
TYPES = (
    "application/json",
    "application/data",
    "application/text",
    "application/x-python-serialize",
    "application/x-yaml",
    "application/x-msgpack",
    "json",
    "pickle",
    "text/plain",
    "",
)
ENCODINGS = (
    "utf-8",
    "binary",
    "us-ascii",
    "utf-16",
    "zlib",
    "bz2",
    "rot13",
    "idna",
    "punycode",
    "no\0ne",
    "",
)
COMPRESSIONS = ("zlib", "gzip", "bz2", "lzma", "application/x-gzip", "nothing", "z" * 300)
WIRES = ("body", "content-type", "content-encoding", "headers", "properties")
HEADERS = (
    "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit",
    "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting",
    "stamped_headers", "stamps", "compression", "gaelp_version", "gaelp_published_at", "gaelp_claim",
    "gaelp_attachment", "delivery_info", "properties", "headers", "args", "kwargs", "hostname", "callbacks",
    "chain", "chord", "reply_to",
    "called_directly",
)  # fmt: skip
PROPERTIES = (
    "correlation_id", "reply_to", "delivery_mode", "delivery_info", "priority", "body_encoding",
    "delivery_tag",
)  # fmt: skip
EMBEDDED = ("callbacks", "errbacks", "chain", "chord")

#: raw JSON for what no JSON library writes
RAW = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 5_000,
    "-0",
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "[" * SHALLOW + "]" * SHALLOW,
    '{"a":1,"a":2,"":3}',
    '"\\ud800"',
    '"\\u0000"',
    "0x10",
    "[1,]",
    '{"__type__":"datetime","__value__":"2031-01-01T00:00:00"}',
    '{"__type__":"bytes","__value__":"AAAA"}',
    '{"__type__":"uuid","__value__":{}}',
    '{"__type__":"Undefined","__value__":1}',
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, 10**30, -(10**400), 1e308, "", "x", "1", " ", "\N{COLLISION SYMBOL}",
    "%s %(a)s %n",
    "../../x", "a\nb\x1b[31m", "y" * LONG, [], [[]], [None], [1, 2, 3], ["x", {}], {}, {"a": 1},
    {"task": "x"},
    {"task": "gaelp.invoke_agent", "args": 5, "kwargs": [], "options": "x"}, {"task": None, "options": {}},
    {"subtask_type": "chord", "task": "celery.chord", "kwargs": {"header": 5}, "args": []},
    {"": {"": {"": []}}}, [{"task": 5}], list(range(2_000)),
)  # fmt: skip
SLOT = "\N{REPLACEMENT CHARACTER}slot"  #: stands for raw JSON until the document is text


class Mutant(NamedTuple):
    """A message that was made wrong, and where."""

    level: str
    message: bytes


class _Writer:
    """Values for a document that will be text; raw ones are put in last."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._raw: list[str] = []

    def value(self, *likely: Any) -> Any:
        """Something that hardly belongs here; half of the time one of the `likely`."""
        if likely and self._rng.random() < 0.5:
            return self._rng.choice(likely)
        if self._rng.random() < 0.3:
            self._raw.append(self._rng.choice(RAW))
            return f"{SLOT}{len(self._raw) - 1}"
        return self._rng.choice(VALUES)

    def text(self, document: Any) -> bytes:
        """The document in JSON."""
        text = json.dumps(document)
        for number, raw in reversed(list(enumerate(self._raw))):
            text = text.replace(json.dumps(f"{SLOT}{number}"), raw)
        return text.encode()


def mutate(message: bytes, rng: Random) -> Mutant:
    """A wrong one of this message, wrong at one level or at two."""
    level = rng.choice(tuple(LEVELS))
    made = LEVELS[level](message, rng)
    if rng.random() < 0.15:
        second = rng.choice(("bytes", "wire", "headers", "properties"))
        try:
            return Mutant(f"{level}+{second}", LEVELS[second](made, rng))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass  # the first has left no document to change
    return Mutant(level, made)


def _bytes(message: bytes, rng: Random) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) or 1)
        match rng.randrange(7):
            case 0 if data:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                data[at:at] = data[at : at + 10] * 3
            case 3:
                data[at:at] = bytes(rng.randint(1, 4))
            case 4:
                data[at:at] = rng.choice((b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"))
            case 5 if rng.random() < 0.3:
                del data[at:]
            case _ if data:
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def _junk(_: bytes, rng: Random) -> bytes:
    """No message at all."""
    return rng.choice((
        b"", b"null", b"[]", b"{}", b"5", b'"x"', b"\0", b"\x80\x04K\x05.",
        rng.randbytes(rng.randint(1, 3_000)),
        b"[" * DEEP, b"[" * (4 * 1024**2 - 1), b'{"headers":' * DEEP, b"z" * (5 * 1024**2),
        b'{"body":"","headers":{},"properties":{}}', b'{"headers":[],"properties":[],"body":[]}',
    ))  # fmt: skip


def _wire(message: bytes, rng: Random) -> bytes:
    document, writer = json.loads(message), _Writer(rng)
    match rng.randrange(5):
        case 0:
            document["content-type"] = writer.value(*TYPES)
        case 1:
            document["content-encoding"] = writer.value(*ENCODINGS)
        case 2:
            document["content-type"] = rng.choice(TYPES)
            document["content-encoding"] = rng.choice(ENCODINGS)
        case 3:
            document.pop(rng.choice(WIRES), None)
        case 4:
            document[rng.choice(WIRES)] = writer.value()
    return writer.text(document)


def _headers(message: bytes, rng: Random) -> bytes:
    document, writer = json.loads(message), _Writer(rng)
    likely = {
        "task": TASKS,
        "eta": TIMES,
        "expires": TIMES,
        "timelimit": (
            [-1, -1],
            [0, 0],
            ["x", "y"],
            [1e308, 1e308],
            [None],
            [1, 2, 3],
            [[1], {}],
            [0.01, None],
        ),
        "retries": (-1, 4, 10**9, 10**400, "1", 1.5),
        "compression": COMPRESSIONS,
        "stamps": ({"a": 5}, {"a": {}}, {"a": ["x"]}, 5),
        "stamped_headers": (["a"], ["nothing"], 5, {"a": 1}),
        "ignore_result": (True, "yes", {}),
    }
    for name in rng.sample(HEADERS, rng.randint(1, 3)):
        if rng.random() < 0.15:
            document["headers"].pop(name, None)
        else:
            document["headers"][name] = writer.value(*likely.get(name, ()))
    return writer.text(document)


def _properties(message: bytes, rng: Random) -> bytes:
    document, writer = json.loads(message), _Writer(rng)
    where = document["properties"]
    for name in rng.sample(PROPERTIES, rng.randint(1, 2)):
        if rng.random() < 0.2:
            where.pop(name, None)
        elif name == "delivery_info" and rng.random() < 0.5:
            where[name] = {
                "exchange": writer.value(),
                "routing_key": writer.value(),
                "redelivered": writer.value(),
            }
        else:
            where[name] = writer.value("base64", "utf-8", "none")
    return writer.text(document)


def _body(message: bytes, rng: Random) -> bytes:
    """What is inside of the base64: arguments, keywords, and what follows."""
    document, writer = json.loads(message), _Writer(rng)
    found = json.loads(base64.b64decode(document["body"]))
    if isinstance(found, dict):  # protocol 1
        found = [found.get("args"), found.get("kwargs"), {}]
    args, kwargs, embedded = found
    match rng.randrange(7):
        case 0:
            args = writer.value([writer.value()], ["a", "b"], [1] * 50)
        case 1:
            kwargs = writer.value({"prompt": writer.value()})
        case 2 if kwargs:
            kwargs[rng.choice(sorted(kwargs))] = writer.value()
        case 3:
            kwargs[rng.choice(("nobody", "self", "task_id", "", "\0"))] = writer.value()
        case 4:
            embedded = writer.value()
        case _:
            names = rng.sample(EMBEDDED, rng.randint(1, 2))
            embedded |= {name: writer.value([writer.value()]) for name in names}
    body: Any = [args, kwargs, embedded]
    if rng.random() < 0.1:
        body = rng.choice(([], [args], [args, kwargs], [*body, 1], {"a": 1, "b": 2, "c": 3}, "abc", None, 5))
    packed = base64.b64encode(writer.text(body))
    document["body"] = (_bytes(packed, rng) if rng.random() < 0.15 else packed).decode(errors="replace")
    return json.dumps(document).encode()


def _twice(message: bytes, rng: Random) -> bytes:
    """The same name more than once: parsers differ in which one counts."""
    document, writer = json.loads(message), _Writer(rng)
    name = rng.choice((*WIRES, "id", "task"))
    more = b"," + writer.text({name: writer.value()})[1:-1]
    if name in {"id", "task"}:
        document["headers"]["twice"] = SLOT
        text = writer.text(document)
        return text.replace(json.dumps(SLOT).encode(), b"1" + more)
    text = writer.text(document)
    return text[:-1] + more + b"}" if rng.random() < 0.5 else b"{" + more[1:] + b"," + text[1:]


LEVELS: dict[str, Callable[[bytes, Random], bytes]] = {
    "bytes": _bytes,
    "junk": _junk,
    "wire": _wire,
    "headers": _headers,
    "properties": _properties,
    "body": _body,
    "twice": _twice,
}
