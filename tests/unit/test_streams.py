"""Token streams: written once, read from any place any number of times. On a fake and on a real Redis."""

import asyncio
import uuid
from types import SimpleNamespace

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks import streams
from gaelp_tasks.connections import Keys, connect, connect_async
from gaelp_tasks.errors import GaelpError, StreamRestarted
from gaelp_tasks.settings import Settings
from gaelp_tasks.streams import (
    FIRST,
    End,
    Piece,
    Reading,
    Start,
    StreamFenced,
    StreamWriter,
    afollow,
    before_run,
    follow,
    parse,
)
from support.fakes import FakeBroker, LosesReplies

TTL_S = 100.0


class Held:
    """A client whose pipelines wait for `gate`, and may be answered in its place."""

    def __init__(self, client):
        self._client = client
        self.gate = asyncio.Event()
        self.rounds = 0
        self.answers = []  #: what a round trip answers instead of Redis

    def __getattr__(self, name):
        return getattr(self._client, name)

    def pipeline(self, transaction=True):
        pipe = self._client.pipeline(transaction=transaction)
        execute = pipe.execute

        async def wait(**how):
            self.rounds += 1
            await self.gate.wait()
            if self.answers:
                return self.answers.pop(0)
            return await execute(**how)

        pipe.execute = wait
        return pipe


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.redis)])
async def place(request, monkeypatch):
    """Clients of one Redis, and the key of a stream that nobody else uses."""
    monkeypatch.setattr(streams, "RECONNECT_S", 0.0)
    monkeypatch.setattr(streams, "BLOCK_S", 0.01)
    keys = Keys(f"{uuid.uuid4()}:")
    if request.param == "fake":
        broker = FakeBroker()
        client, sync = broker.client(), broker.sync
    else:
        chosen = Settings(broker_url=request.getfixturevalue("broker").url)
        client, sync = connect_async(chosen), connect(chosen)
    yield SimpleNamespace(redis=client, sync=sync, keys=keys, key=keys.stream("i"))
    sync.delete(keys.stream("i"))
    await client.aclose()
    sync.close()


def writer(place, client=None):
    return StreamWriter(client or place.redis, place.keys, ttl_s=TTL_S)


def entries(place):
    return [parse(entry_id, fields) for entry_id, fields in place.sync.xrange(place.key)]


def text(place):
    return "".join(event.text for event in entries(place) if isinstance(event, Piece))


async def sent(place, stream):
    """Wait until everything written so far is in Redis."""
    while stream._writer.pending(stream):
        await stream._writer.flushed()


async def turns(number=20):
    """Let everything that could go on without waiting go on."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_an_entry_is_named_by_its_claim_and_its_number(place):
    stream = writer(place).open("i", 3)
    stream.start({"agent": "chat"})
    for piece in ("Hel", "lo"):
        stream.write(piece)
        await sent(place, stream)
    await stream.end({"outcome": "done"})
    assert entries(place) == [
        Start("3-0", 3, {"agent": "chat"}),
        Piece("3-1", 3, "Hel"),
        Piece("3-2", 3, "lo"),
        End("3-3", 3, {"outcome": "done"}),
    ]


async def test_the_end_waits_until_it_is_written_and_starts_the_time_to_live(place):
    stream = writer(place).open("i", 1)
    stream.start({})
    stream.write("x")
    await sent(place, stream)
    assert place.sync.pttl(place.key) == -1
    await stream.end({})
    assert isinstance(entries(place)[-1], End)
    assert 0 < place.sync.pttl(place.key) <= TTL_S * 1000


async def test_texts_that_gather_travel_together_and_the_first_leaves_at_once(place):
    held = Held(place.redis)
    stream = writer(place, held).open("i", 1)
    stream.write("a")
    await turns()
    assert held.rounds == 1
    for piece in "bcdef":
        stream.write(piece)
        await turns()
    assert held.rounds == 1
    held.gate.set()
    await sent(place, stream)
    assert [event.text for event in entries(place)] == ["a", "bcdef"]
    assert held.rounds == 2


async def test_text_and_thinking_keep_their_order_and_stay_apart(place):
    stream = writer(place).open("i", 1)
    stream.write("a")
    stream.think("hm")
    stream.write("b")
    await stream.end({})
    pieces = entries(place)[:-1]
    assert pieces == [Piece("1-0", 1, "a"), Piece("1-1", 1, "", "hm"), Piece("1-2", 1, "b")]
    reading = Reading()
    assert "".join(map(reading.take, pieces)) == "ab"


async def test_streams_of_one_writer_do_not_mix(place):
    shared = writer(place)
    streams_of = [shared.open(f"i{number}", 1) for number in range(5)]
    for piece in "xyz":
        for number, stream in enumerate(streams_of):
            stream.write(f"{piece}{number}")
        await turns(2)
    await asyncio.gather(*(stream.end({}) for stream in streams_of))
    for number in range(5):
        key = place.keys.stream(f"i{number}")
        assert (
            "".join(fields.get("t", "") for _, fields in place.sync.xrange(key))
            == f"x{number}y{number}z{number}"
        )
        place.sync.delete(key)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_write_repeated_after_a_lost_reply_adds_nothing(place, times):
    losing = LosesReplies(place.redis, times=times)
    stream = writer(place, losing).open("i", 1)
    stream.start({})
    stream.write("Hel")
    await sent(place, stream)
    losing.times = times
    stream.write("lo")
    await stream.end({"outcome": "done"})
    assert losing.times == 0
    assert [event.id for event in entries(place)] == ["1-0", "1-1", "1-2", "1-3"]
    assert text(place) == "Hello"
    await stream.room()  # and it does not take its own write for somebody else's


async def test_what_gathers_while_redis_is_away_arrives_afterwards_in_order(place):
    class Away(Held):
        def pipeline(self, transaction=True):
            if self.gate.is_set():
                return self._client.pipeline(transaction=transaction)
            self.rounds += 1
            pipe = super().pipeline(transaction=transaction)

            async def fail(**_):
                raise redis.ConnectionError("refused")

            pipe.execute = fail
            return pipe

    away = Away(place.redis)
    stream = writer(place, away).open("i", 1)
    stream.start({})
    for piece in "Hello":
        stream.write(piece)
        await turns(5)
    assert away.rounds > 1
    away.gate.set()
    await stream.end({})
    assert text(place) == "Hello"
    assert [type(event) for event in entries(place)[:1] + entries(place)[-1:]] == [Start, End]


async def test_a_later_claim_fences_the_earlier_one(place):
    shared = writer(place)
    old, new = shared.open("i", 1), shared.open("i", 2)
    old.start({})
    old.write("old")
    await sent(place, old)
    new.start({})
    await sent(place, new)
    before = entries(place)
    old.write("late")
    await sent(place, old)
    with pytest.raises(StreamFenced, match="invocation i|Invocation i"):
        await old.room()
    with pytest.raises(StreamFenced):
        await old.end({"outcome": "done"})
    assert entries(place) == before
    assert place.sync.pttl(place.key) == -1, "a fenced run must not start the time to live"
    new.write("new")
    await new.end({})
    assert "late" not in text(place)


async def test_the_end_of_a_fenced_run_tells_that_it_is_fenced(place):
    shared = writer(place)
    old, new = shared.open("i", 1), shared.open("i", 2)
    new.start({})
    await sent(place, new)
    with pytest.raises(StreamFenced):
        await old.end({"outcome": "done"})


async def test_room_waits_while_too_much_is_on_its_way(place, monkeypatch):
    monkeypatch.setattr(streams, "BACKLOG_BYTES", 10)
    held = Held(place.redis)
    stream = writer(place, held).open("i", 1)
    stream.write("x" * 10)
    await asyncio.wait_for(stream.room(), 1)
    stream.write("x")
    waiting = asyncio.create_task(stream.room())
    await turns()
    assert not waiting.done()
    held.gate.set()
    await asyncio.wait_for(waiting, 5)
    await stream.end({})
    assert text(place) == "x" * 11


async def test_room_waits_for_thinking_too(place, monkeypatch):
    monkeypatch.setattr(streams, "BACKLOG_BYTES", 10)
    held = Held(place.redis)
    stream = writer(place, held).open("i", 1)
    for _ in range(5):
        stream.think("x" * 10)
    waiting = asyncio.create_task(stream.room())
    await turns()
    was_done = waiting.done()
    held.gate.set()
    await asyncio.wait_for(waiting, 5)
    await stream.end({})
    assert not was_done


async def test_what_redis_refuses_is_not_lost_in_silence(place):
    held = Held(place.redis)
    held.gate.set()
    stream = writer(place, held).open("i", 1)
    stream.start({})
    await sent(place, stream)
    held.answers = [[redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'.")]]
    stream.write("Hel")
    await sent(place, stream)
    stream.write("lo")
    try:
        await stream.room()
        await asyncio.wait_for(stream.end({}), 5)
    except GaelpError:
        return
    assert text(place) == "Hello"


async def test_a_connection_lost_while_asking_who_overtook_us_holds_nobody_up(place):
    class Flaky(LosesReplies):
        asked = 0

        async def xrevrange(self, *args, **kwargs):
            self.asked += 1
            if self.asked == 1:
                raise redis.ConnectionError("gone")
            return await self._client.xrevrange(*args, **kwargs)

    stream = writer(place, Flaky(place.redis)).open("i", 1)
    stream.write("Hello")
    await asyncio.wait_for(stream.end({}), 5)
    assert text(place) == "Hello"


async def test_text_that_cannot_be_written_holds_nobody_up(place):
    shared = writer(place)
    broken, other = shared.open("i", 1), shared.open("j", 1)
    broken.write("half a pair \ud83d")
    other.write("x")
    results = await asyncio.wait_for(asyncio.gather(broken.end({}), other.end({}), return_exceptions=True), 5)
    assert results[1] is None
    place.sync.delete(place.keys.stream("j"))


pieces_of_text = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
        | st.sampled_from(["", "\x00", "\r\n", "👩‍💻"]),
        st.integers(0, 3),
    ),
    max_size=25,
)


@given(pieces_of_text, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_however_pieces_gather_the_text_is_exact(pieces, lost):
    async def write():
        broker = FakeBroker()
        client = broker.client()
        stream = StreamWriter(LosesReplies(client, times=lost), Keys(), ttl_s=TTL_S).open("i", 1)
        stream.start({})
        for piece, pause in pieces:
            stream.write(piece)
            await turns(pause)
        await stream.end({})
        await client.aclose()
        return broker.events("gaelp:stream:i")

    kept, streams.RECONNECT_S = streams.RECONNECT_S, 0.0
    try:
        events = asyncio.run(write())
    finally:
        streams.RECONNECT_S = kept
    reading = Reading()
    assert "".join(map(reading.take, events)) == "".join(piece for piece, _ in pieces)
    assert reading.end is not None
    assert [event.id for event in events] == [f"1-{number}" for number in range(len(events))]


# -- reading


async def written(place, *pieces, claim=1):
    stream = writer(place).open("i", claim)
    stream.start({"claim": claim})
    for piece in pieces:
        stream.write(piece)
        await sent(place, stream)
    return stream


def read(place, after=FIRST):
    """The events after an id, up to the first silence."""
    events = []
    for event in follow(place.sync, place.key, after):
        if event is None:
            return events
        events.append(event)
    return events


async def test_late_and_resuming_readers_see_the_same_text(place):
    stream = await written(place, "a", "b", "c", "d")
    await stream.end({"outcome": "done"})
    whole = read(place)
    assert "".join(getattr(event, "text", "") for event in whole) == "abcd"
    assert read(place) == whole
    for at, event in enumerate(whole):
        assert read(place, after=event.id) == whole[at + 1 :]


async def test_a_reader_that_waits_gets_what_is_written_later(place):
    events = afollow(place.redis, place.key)
    assert await anext(events) is None
    stream = await written(place, "a")
    assert [await anext(events), await anext(events)] == entries(place)
    stream.write("b")
    later = await anext(events)
    while later is None:
        later = await anext(events)
    assert (later.id, later.text) == ("1-2", "b")
    await stream.end({})
    await events.aclose()


async def test_more_entries_than_one_read_takes_arrive_once_each(place, monkeypatch):
    monkeypatch.setattr(streams, "BATCH", 3)
    await written(place, *map(str, range(10)))
    assert read(place) == entries(place)
    assert len(read(place)) == 11


def test_a_run_that_starts_over_is_told_only_to_who_has_read_text():
    reading = Reading()
    assert reading.take(Start("1-0", 1, {})) == ""
    assert reading.take(Piece("1-1", 1, "", "hm")) == ""
    assert reading.take(Start("2-0", 2, {})) == ""
    assert reading.take(Piece("2-1", 2, "Hel")) == "Hel"
    with pytest.raises(StreamRestarted, match="started over"):
        reading.take(Start("3-0", 3, {}))


@pytest.mark.parametrize("claims", [[1], [1, 2], [3, 7]])
async def test_the_newest_run_can_be_read_from_its_first_entry(place, claims):
    for claim in claims:
        stream = await written(place, f"text of {claim}", claim=claim)
    await stream.end({})
    begin = before_run(place.sync.xrevrange(place.key, count=1))
    assert [event.id for event in read(place, begin)] == [f"{claims[-1]}-{number}" for number in range(3)]


def test_before_any_run_reading_begins_at_the_beginning():
    assert before_run([]) == FIRST


def test_a_silent_second_and_an_empty_piece_add_nothing():
    reading = Reading()
    assert reading.take(None) == ""
    assert reading.take(Piece("1-1", 1, "")) == ""
    assert not reading.read
    end = End("1-2", 1, {})
    assert reading.take(end) == ""
    assert reading.end is end
