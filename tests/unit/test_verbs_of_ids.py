"""`gaelp show`, `attach`, `cancel`: what they take for an id, and what they say of one that nobody knows."""

import json
from uuid import uuid4

import pytest
from celery.backends.cache import CacheBackend
from celery.exceptions import NotRegistered, TaskRevokedError
from typer.testing import CliRunner

from gaelp_tasks import readers
from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.cli.app import cli
from gaelp_tasks.errors import DeadLettered
from support.fakes import FakeBroker

ID = str(uuid4())


@pytest.fixture
def redis(monkeypatch):
    """A Redis in memory with one run that has ended, and results in memory."""
    fake = FakeBroker().sync
    monkeypatch.setitem(app.__dict__, "redis", fake)
    backend = CacheBackend(app=app, backend="memory")
    backend.client.cache.clear()
    monkeypatch.setattr(GaelpApp, "backend", backend)
    fake.xadd(f"gaelp:stream:{ID}", {"start": json.dumps({"agent": "chat"})}, id="1-0")
    fake.xadd(f"gaelp:stream:{ID}", {"t": "Hello"}, id="1-1")
    fake.xadd(f"gaelp:stream:{ID}", {"end": json.dumps({"outcome": "done"})}, id="1-2")
    return fake


def gaelp(*words):
    return CliRunner().invoke(cli, words)


def test_show_attach_and_cancel_take_the_eight_characters_of_top(redis):
    assert ID in gaelp("show", ID[:8]).stdout
    attached = gaelp("attach", ID[:8])
    assert (attached.exit_code, attached.stdout) == (0, "Hello\n")
    cancelled = gaelp("cancel", ID[:8])
    assert (cancelled.exit_code, redis.exists(f"gaelp:cancel:{ID}")) == (0, 1)


@pytest.mark.parametrize("unknown", ["abc", "abcdefgh", "9b2119d0-80d6-425c-952c-f3ea9de009f2"])
def test_attach_to_what_nobody_knows_ends_at_once_with_shows_sentence(redis, unknown):
    done = gaelp("attach", unknown)
    assert done.exit_code == 1
    assert "No queue, stream or result here knows this id" in done.stderr


def ends(words, whole=True):
    """What is told as JSON, the last line of it without its id."""
    done = gaelp("attach", "--json", *words)
    assert done.exit_code == 0
    *lines, end = map(json.loads, done.stdout.splitlines())
    assert [line["event"] for line in lines] == (["start", "piece"] if whole else [])
    assert (end["event"], end["id"] is not None, end["claim"] is not None) == ("end", whole, whole)
    return end["facts"]


def test_attach_tells_events_as_json_up_to_the_end(redis):
    assert ends([ID[:8]]) == {"outcome": "done"}


@pytest.mark.parametrize(
    ("state", "result", "facts"),
    [
        (
            "SUCCESS",
            {"text": "Hi", "stop_reason": "length"},
            {"outcome": "done", "stop_reason": "length", "result": {"text": "Hi", "stop_reason": "length"}},
        ),
        (
            "SUCCESS",
            {"text": "Hi", "stop_reason": "stall"},
            {"outcome": "cut", "stop_reason": "stall", "result": {"text": "Hi", "stop_reason": "stall"}},
        ),
        ("SUCCESS", 7, {"outcome": "done", "stop_reason": None, "result": 7}),
        (
            "FAILURE",
            DeadLettered("It is one."),
            {"outcome": "failed", "error": "DeadLettered", "message": "It is one."},
        ),
        (
            "REVOKED",
            TaskRevokedError("expired"),
            {"outcome": "cut", "error": "TaskRevokedError", "message": "expired"},
        ),
    ],
    ids=["done", "cut", "another's task", "failed", "revoked"],
)
def test_attach_as_json_ends_where_no_stream_says_so_with_what_the_result_tells(
    redis, monkeypatch, state, result, facts
):
    monkeypatch.setattr(readers, "BLOCK_S", 0.01)
    app.backend.store_result("x", result, state)
    assert ends(["x"], whole=False) == facts


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"text": "Hi there", "stop_reason": "stop"}, "Hi there\n"),
        ({"embeddings": [[1.0]]}, json.dumps({"embeddings": [[1.0]]}, indent=2) + "\n"),
        (7, "7\n"),
    ],
    ids=["answer", "vectors", "another's task"],
)
def test_attach_shows_the_result_where_its_stream_is_kept_no_more(redis, monkeypatch, result, told):
    monkeypatch.setattr(readers, "BLOCK_S", 0.01)
    app.backend.store_result("x", result, "SUCCESS")
    done = gaelp("attach", "x")
    assert (done.exit_code, done.stdout) == (0, told)


@pytest.mark.parametrize(
    ("state", "error", "told"),
    [
        ("FAILURE", NotRegistered("no.such"), "It ended without an answer: NotRegistered: "),
        ("FAILURE", ValueError("my bug"), "It ended without an answer: ValueError: my bug"),
        ("REVOKED", TaskRevokedError("expired"), "It ended without an answer: TaskRevokedError: expired"),
    ],
)
def test_attach_says_in_a_sentence_what_others_have_failed_with(redis, monkeypatch, state, error, told):
    monkeypatch.setattr(readers, "BLOCK_S", 0.01)
    app.backend.store_result("x", error, state)
    done = gaelp("attach", "x")
    assert (done.exit_code, done.stdout) == (1, "")
    assert told in done.stderr


def test_cancel_says_which_it_does_not_know_and_cancels_the_others(redis):
    redis.xadd("gaelp:stream:twins-1", {"t": "x"}, id="1-0")
    redis.xadd("gaelp:stream:twins-2", {"t": "x"}, id="1-0")
    done = gaelp("cancel", "nobody", "twins-", ID)
    assert done.exit_code == 1
    assert "Nobody here knows nobody" in done.stderr
    assert "twins-1, twins-2" in done.stderr
    assert done.stdout.startswith("Asked 1 to stop")
    assert redis.exists(f"gaelp:cancel:{ID}")
    assert not redis.exists("gaelp:cancel:twins-")
    assert json.loads(gaelp("cancel", "nobody", ID, "--json").stdout) == {"cancelled": [ID]}


def test_cancel_never_refuses_a_whole_id(redis):
    later = str(uuid4())
    done = gaelp("cancel", later)
    assert (done.exit_code, done.stderr) == (0, "")
    assert redis.exists(f"gaelp:cancel:{later}"), "the wish waits for it"


def test_the_version_is_told_with_the_name():
    done = gaelp("--version")
    assert done.exit_code == 0
    assert done.stdout.startswith("gaelp-tasks ")
