"""The handle of an invocation: its stream, its end, its cancelling."""

import json
from contextlib import aclosing

import pytest
from celery.app.control import Control as CeleryControl
from celery.backends.cache import CacheBackend
from celery.exceptions import TimeLimitExceeded
from celery.exceptions import TimeoutError as CeleryTimeout

from gaelp_tasks import readers, results
from gaelp_tasks.celery_app import app
from gaelp_tasks.errors import BrokerUnavailable, NodeUnreachable, StreamRestarted, StreamUnavailable
from gaelp_tasks.line import PlainLine
from gaelp_tasks.results import InvocationHandle
from support.fakes import FakeBroker

KEY = "gaelp:stream:i"


@pytest.fixture
def broker(monkeypatch):
    """A Redis in memory behind the app of this process."""
    fake = FakeBroker()
    monkeypatch.setattr(readers, "BLOCK_S", 0.01)
    monkeypatch.setitem(app.__dict__, "redis", fake.sync)
    monkeypatch.setattr(results, "open_line", lambda _: PlainLine(fake.client()))
    return fake


@pytest.fixture
def backend():
    memory = CacheBackend(app=app, backend="memory")
    memory.client.cache.clear()
    return memory


@pytest.fixture
def handle(broker, backend):
    return InvocationHandle("i", app=app, backend=backend)


@pytest.fixture
def write(broker):
    """`write("1-0", t="text")` adds an entry."""

    def add(entry_id, **fields):
        flat = {name: value if name in "th" else json.dumps(value) for name, value in fields.items()}
        broker.sync.xadd(KEY, flat, id=entry_id)

    return add


async def read(handle, how, **options):
    """The pieces of both ways to read, which must not differ."""
    if how == "stream":
        return list(handle.stream(**options))
    async with aclosing(handle.astream(**options)) as pieces:
        return [piece async for piece in pieces]


both = pytest.mark.parametrize("how", ["stream", "astream"])


@both
async def test_the_stream_ends_with_the_end_mark_though_no_result_is_there_yet(handle, write, how):
    write("1-0", start={})
    write("1-1", h="hm")
    write("1-2", t="Hel")
    write("1-3", t="lo")
    write("1-4", end={"outcome": "done"})
    assert await read(handle, how) == ["Hel", "lo"]
    assert await read(handle, how) == ["Hel", "lo"], "reading again starts from the first token"


@both
async def test_a_cut_run_ends_the_stream_without_an_error(handle, write, how):
    write("1-0", t="Hel")
    write("1-1", end={"outcome": "cut", "stop_reason": "cancelled"})
    assert await read(handle, how) == ["Hel"]


@both
async def test_a_failed_run_raises_what_it_failed_with(handle, write, how):
    write("1-0", end={"outcome": "failed", "error": "NodeUnreachable", "message": "No node answers."})
    with pytest.raises(NodeUnreachable, match=r"^No node answers\.$"):
        await read(handle, how)


@both
@pytest.mark.parametrize("error", [ValueError("my bug"), TimeLimitExceeded("time_limit")])
async def test_the_stream_of_a_failed_run_raises_the_same_as_get(handle, write, backend, how, error):
    backend.mark_as_failure("i", error)
    write("1-0", end={"outcome": "failed", "error": type(error).__name__, "message": str(error)})
    with pytest.raises(type(error)):
        handle.get(timeout=1)
    with pytest.raises(type(error)):
        await read(handle, how)


@both
async def test_a_failure_without_a_stream_is_raised_too(handle, backend, how):
    backend.mark_as_failure("i", NodeUnreachable("No node answers."))
    with pytest.raises(NodeUnreachable):
        await read(handle, how)


@both
async def test_silence_longer_than_the_timeout_is_celerys_timeout(handle, write, how, monkeypatch):
    ticks = iter(range(0, 1000, 2))
    monkeypatch.setattr(results, "monotonic", lambda: next(ticks))
    write("1-0", t="Hel")
    with pytest.raises(CeleryTimeout, match="for 7 s"):
        await read(handle, how, timeout=7)
    assert next(ticks) >= 8


@both
async def test_a_stream_that_is_gone_is_told_when_the_result_is_there(handle, backend, how):
    backend.store_result("i", {"text": "Hello"}, "SUCCESS")
    with pytest.raises(StreamUnavailable, match=r"GAELP_STREAM_TTL_S.*get\(\)"):
        await read(handle, how)


@both
async def test_a_stream_without_an_end_stops_when_the_result_is_there(handle, backend, write, how):
    write("1-0", t="Hel")
    backend.store_result("i", {"text": "Hello"}, "SUCCESS")
    assert await read(handle, how) == ["Hel"]


@both
async def test_what_comes_between_a_silent_second_and_the_look_for_the_result_is_read(
    handle, backend, write, how, monkeypatch
):
    write("1-0", t="Hel")

    def ready():
        write("1-1", t="lo")
        write("1-2", end={"outcome": "done"})
        backend.store_result("i", {"text": "Hello"}, "SUCCESS")
        return True

    monkeypatch.setattr(handle, "ready", ready)
    assert await read(handle, how) == ["Hel", "lo"]


def test_a_run_that_starts_over_is_told_after_text_was_read(handle, write):
    write("1-0", start={})
    write("1-1", t="Hel")
    pieces = handle.stream(timeout=5)
    assert next(pieces) == "Hel"
    write("2-0", start={})
    with pytest.raises(StreamRestarted):
        next(pieces)


async def test_a_run_that_starts_over_is_told_to_asynchronous_readers_too(handle, write):
    write("1-0", start={})
    write("1-1", t="Hel")
    async with aclosing(handle.astream(timeout=5)) as pieces:
        assert await anext(pieces) == "Hel"
        write("2-0", start={})
        with pytest.raises(StreamRestarted):
            await anext(pieces)


def test_a_run_that_starts_over_before_any_text_goes_on(handle, write):
    write("1-0", start={})
    write("1-1", h="hm")
    pieces = handle.stream(timeout=5)
    write("2-0", start={})
    write("2-1", t="Hello")
    write("2-2", end={"outcome": "done"})
    assert list(pieces) == ["Hello"]


@both
async def test_who_reads_again_after_a_restart_gets_the_text_of_the_last_run(handle, write, how):
    for entry_id, fields in {
        "1-0": {"start": {}}, "1-1": {"t": "Hel"}, "2-0": {"start": {}}, "2-1": {"t": "Hello"},
        "2-2": {"end": {"outcome": "done"}},
    }.items():  # fmt: skip
        write(entry_id, **fields)
    assert await read(handle, how) == ["Hello"]


@both
async def test_without_redis_the_stream_says_so(handle, broker, how):
    broker.goes_away()
    with pytest.raises(BrokerUnavailable, match="GAELP_BROKER_URL"):
        await read(handle, how)


def test_events_go_on_from_an_entry(handle, write):
    write("1-0", start={"worker": "w"})
    write("1-1", t="a")
    write("1-2", t="b")
    events = handle.events(after="1-1")
    assert next(events).text == "b"
    assert next(events) is None


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
def test_events_end_behind_the_last_entry_once_the_result_is_there(handle, backend, write, state):
    write("1-0", start={})
    events = handle.events()
    assert [type(next(events)).__name__, next(events)] == ["Start", None]
    write("1-1", t="Hel")
    backend.store_result("i", {"text": "Hel"} if state == "SUCCESS" else ValueError("bug"), state)
    assert [event.text for event in events] == ["Hel"]


def test_a_cancel_leaves_a_standing_request_and_calls_it_out(handle, broker):
    calls = broker.sync.pubsub(ignore_subscribe_messages=True)
    calls.subscribe("gaelp:cancellations")
    calls.get_message(timeout=1)
    handle.cancel()
    assert broker.sync.get("gaelp:cancel:i") == "user"
    assert 0 < broker.sync.ttl("gaelp:cancel:i") <= app.settings.cancel_ttl_s
    assert calls.get_message(timeout=1)["data"] == "i"
    calls.close()


def test_revoking_a_handle_is_cancelling_and_asks_no_worker(handle, broker, monkeypatch):
    monkeypatch.delattr(CeleryControl, "broadcast")
    handle.revoke(terminate=True, signal="SIGKILL")
    assert broker.sync.get("gaelp:cancel:i") == "user"


@pytest.mark.parametrize("ids", ["i", ["i"], ("i", "j")])
def test_our_apps_control_leaves_the_request_and_then_tells_the_workers(handle, broker, monkeypatch, ids):
    told = []
    monkeypatch.setattr(
        CeleryControl, "broadcast", lambda _, command, **options: told.append((command, options))
    )
    app.control.revoke(ids, terminate=True)
    assert broker.sync.get("gaelp:cancel:i") == "user"
    assert bool(broker.sync.exists("gaelp:cancel:j")) is ("j" in ids)
    [(command, options)] = told
    assert (command, options["arguments"]["task_id"], options["arguments"]["terminate"]) == (
        "revoke",
        ids,
        True,
    )


@pytest.mark.parametrize("ask", [lambda handle: handle.cancel(), lambda _: app.control.revoke("i")])
def test_a_cancel_without_redis_says_so(handle, broker, ask):
    broker.goes_away()
    with pytest.raises(BrokerUnavailable):
        ask(handle)
