"""Messages that would take all memory once read are refused unread; odd keys harm no other queue."""

import base64
import bz2
import gzip
import json
import lzma
import zlib
from functools import cache
from typing import Any

import psutil
import pytest
from kombu.exceptions import ContentDisallowed, DecodeError

from faults.mutations.run import model_server
from gaelp_tasks import app, dead_letters, invoke_agent
from support.eventually import eventually
from support.worker import WorkerProcess

pytestmark = pytest.mark.redis

INFLATED_BYTES = 300 * 1024**2
GROWTH_BYTES = 32 * 1024**2


@cache
def packed() -> dict[str, bytes]:
    """Bodies that would be far too large; most packers unpack what was packed in pieces."""
    piece = b"[" + b" " * (INFLATED_BYTES // 16)
    return {
        "zlib": zlib.compress(b'[[], {"prompt": "' + b"a" * INFLATED_BYTES + b'"}, {}]'),
        "bz2": bz2.compress(piece) * 16,
        "gzip": gzip.compress(piece) * 16,
        "lzma": lzma.compress(piece, preset=0) * 16,
    }


#: every name that kombu knows a packer by
NAMES = {
    "application/x-gzip": "zlib", "gzip": "zlib", "zlib": "zlib", "application/x-bz2": "bz2", "bzip2": "bz2",
    "bzip": "bz2", "application/x-lzma": "lzma", "lzma": "lzma", "xz": "lzma", "application/x-gzip2": "gzip",
}  # fmt: skip


def message(body: bytes, task_id: str, **headers: Any) -> dict[str, Any]:
    return {
        "body": base64.b64encode(body).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"id": task_id, "task": "gaelp.invoke_agent", **headers},
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": "interactive"},
            "body_encoding": "base64",
        },
    }


def grown_by(worker, publish, *, letters: int) -> int:
    """How much the worker's memory has grown when it has refused so many, at any moment of it."""
    process = psutil.Process(worker.process.pid)
    before = most = process.memory_info().rss
    publish()

    def refused() -> bool:
        nonlocal most
        most = max(most, process.memory_info().rss)
        return dead_letters.count(app) >= letters

    eventually(refused, within_s=60)
    assert invoke_agent.delay("Hi").get(timeout=30)["stop_reason"] == "stop"
    return max(most, process.memory_info().rss) - before


@pytest.fixture(scope="module")
def started(broker, tmp_path_factory):
    """One worker for all of these."""
    with model_server() as node:
        settings = {"GAELP_BROKER_URL": broker.url, "GAELP_OLLAMA_NODES": node}
        with WorkerProcess(tmp_path_factory.mktemp("worker"), **settings) as worker:
            yield worker


@pytest.fixture
def warm(started):
    """It has run something, so that its memory holds all it needs; there are no dead letters."""
    app.redis.delete(app.keys.dead, app.keys.dead_messages, "interactive")
    for _ in range(3):
        invoke_agent.delay("Hi").get(timeout=30)
    return started


def test_a_compressed_message_is_refused_unread_whatever_its_packer_is_called(warm):
    odd: list[Any] = ["x" * 300, ["zlib"], 5, {"a": 1}]
    bombs = [message(packed()[packer], name, compression=name) for name, packer in NAMES.items()]
    bombs += [message(packed()["bz2"], str(number), compression=name) for number, name in enumerate(odd)]
    publish = lambda: app.redis.lpush("interactive", *map(json.dumps, bombs))  # noqa: E731  for the next line only
    assert grown_by(warm, publish, letters=len(bombs)) < GROWTH_BYTES
    assert {letter.reason for letter in dead_letters.listed(app, most=100)} == {"compressed"}


def test_a_body_that_its_encoding_would_inflate_is_refused_unread(warm):
    """What is not JSON is decoded by the encoding it names, and Python's codecs know packers."""
    data = [
        message(packed()[packer], encoding) | {"content-type": kind, "content-encoding": encoding}
        for encoding, packer in (("zlib", "zlib"), ("zip", "zlib"), ("bz2", "bz2"))
        for kind in ("application/data", None, "")
    ]
    publish = lambda: app.redis.lpush("interactive", *map(json.dumps, data))  # noqa: E731  for the next line only
    assert grown_by(warm, publish, letters=len(data)) < GROWTH_BYTES


def test_json_that_is_all_brackets_is_refused(warm):
    most = int(app.settings.max_message_bytes)
    deep = (b"[" * 4_000_000, b'{"a":' * 700_000, b"[" * (most + 1), b"[[]," * 10_000 + b"[]" + b"]" * 10_000)
    inside = (b"[" * 2_000_000, b"[" * 10_000 + b"]" * 10_000)
    bodies = [json.dumps(message(body, str(number))) for number, body in enumerate(inside)]
    publish = lambda: app.redis.lpush("interactive", *deep, *bodies)  # noqa: E731  for the next line only
    assert grown_by(warm, publish, letters=len(deep) + len(inside)) < GROWTH_BYTES
    reasons = sorted(letter.reason for letter in dead_letters.listed(app, most=100))
    assert reasons == sorted([*["not JSON"] * 3, "oversized", *["malformed body"] * 2])


def test_a_command_for_workers_that_is_a_bomb_is_not_opened(warm):
    """Remote control travels on a channel of its own, past the claim."""
    bomb = message(packed()["zlib"], "1", compression="zlib")
    bomb["properties"] |= {"delivery_tag": "1"}
    for junk in (
        "junk",
        "5",
        "[" * 100_000,
        json.dumps({"body": 5}),
        json.dumps(message(b"[[[", "2")),
        b"\xff",
    ):
        app.redis.publish("/0.celery.pidbox", junk)
    process = psutil.Process(warm.process.pid)
    before = process.memory_info().rss
    assert app.redis.publish("/0.celery.pidbox", json.dumps(bomb)) == 1
    assert app.control.inspect([warm.name], timeout=5).ping(), "it hears the next one"
    assert process.memory_info().rss - before < GROWTH_BYTES
    assert warm.process.poll() is None
    assert "Connection to broker lost" not in warm.log()


def test_a_publisher_opens_no_packed_result_either(broker):
    handle = invoke_agent.AsyncResult("bomb")
    packed = zlib.compress(b"[" * 1_000_000)
    app.redis.set(app.backend.get_key_for_task("bomb"), packed)
    before = psutil.Process().memory_info().rss
    with pytest.raises((UnicodeDecodeError, DecodeError, ContentDisallowed)):
        _ = handle.state
    app.redis.set(app.backend.get_key_for_task("bomb"), "[" * 4_000_000)
    with pytest.raises((ValueError, DecodeError, RecursionError)):
        _ = handle.state
    assert psutil.Process().memory_info().rss - before < GROWTH_BYTES
    app.redis.delete(app.backend.get_key_for_task("bomb"))


@pytest.mark.parametrize("kind", ["string", "hash", "set", "sorted set", "stream"])
def test_a_queue_that_is_no_list_harms_no_other(warm, kind):
    app.redis.delete("interactive")
    match kind:
        case "string":
            app.redis.set("interactive", "x")
        case "hash":
            app.redis.hset("interactive", "a", "b")
        case "set":
            app.redis.sadd("interactive", "a")
        case "sorted set":
            app.redis.zadd("interactive", {"a": 1})
        case "stream":
            app.redis.xadd("interactive", {"a": "b"})
    try:
        assert invoke_agent.delay("Hi", tier="batch").get(timeout=30)["stop_reason"] == "stop"
    finally:
        app.redis.delete("interactive")
    assert invoke_agent.delay("Hi").get(timeout=30)["stop_reason"] == "stop"
    assert dead_letters.count(app) == 0
