"""Token streams: written once, and never twice. On a fake and on a real Redis."""

import asyncio

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks import streams
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.keys import Keys
from gaelp_tasks.line import PlainLine
from gaelp_tasks.readers import Reading
from gaelp_tasks.streams import End, Pause, Piece, Start, StreamFenced, StreamWriter
from support.fakes import FakeBroker, LosesReplies, stream_place, turns

TTL_S = 100.0  #: of the streams of `stream_place`


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
    monkeypatch.setattr(streams, "AGAIN_S", 0.0)
    url = request.getfixturevalue("broker").url if request.param == "real" else None
    async with stream_place(url) as made:
        yield made


async def test_an_entry_is_named_by_its_claim_and_its_number(place):
    stream = place.writer().open("i", 3)
    stream.start({"agent": "chat"})
    for piece in ("Hel", "lo"):
        stream.write(piece)
        await place.sent(stream)
    await stream.end({"outcome": "done"})
    assert place.entries() == [
        Start("3-0", 3, {"agent": "chat"}),
        Piece("3-1", 3, "Hel"),
        Piece("3-2", 3, "lo"),
        End("3-3", 3, {"outcome": "done"}),
    ]


async def test_the_end_waits_until_it_is_written_and_starts_the_time_to_live(place):
    stream = place.writer().open("i", 1)
    stream.start({})
    stream.write("x")
    await place.sent(stream)
    assert place.sync.pttl(place.key) == -1
    await stream.end({})
    assert isinstance(place.entries()[-1], End)
    assert 0 < place.sync.pttl(place.key) <= TTL_S * 1000


async def test_texts_that_gather_travel_together_and_the_first_leaves_at_once(place):
    held = Held(place.redis)
    stream = place.writer(held).open("i", 1)
    stream.write("a")
    await turns()
    assert held.rounds == 1
    for piece in "bcdef":
        stream.write(piece)
        await turns()
    assert held.rounds == 1
    held.gate.set()
    await place.sent(stream)
    assert [(event.text, event.tokens) for event in place.entries()] == [("a", 1), ("bcdef", 5)]
    assert held.rounds == 2


async def test_text_and_thinking_keep_their_order_and_stay_apart(place):
    stream = place.writer().open("i", 1)
    stream.write("a")
    stream.think("hm")
    stream.write("b")
    await stream.end({})
    pieces = place.entries()[:-1]
    assert pieces == [Piece("1-0", 1, "a"), Piece("1-1", 1, "", "hm"), Piece("1-2", 1, "b")]
    reading = Reading()
    assert "".join(map(reading.take, pieces)) == "ab"


async def test_text_that_no_model_wrote_now_counts_no_tokens(place):
    stream = place.writer().open("i", 1)
    stream.write("known", tokens=0)
    await stream.end({})
    assert [event.tokens for event in place.entries()[:-1]] == [0]


async def test_a_pause_is_the_last_word_of_a_run_and_says_nothing_to_readers(place):
    stream = place.writer().open("i", 1)
    stream.start({})
    stream.write("a")
    stream.pause({"reason": "eviction", "tokens": 1})
    await place.sent(stream)
    *_, last = place.entries()
    assert last == Pause("1-2", 1, {"reason": "eviction", "tokens": 1})
    assert Reading().take(last) == ""
    [*_, (_, fields)] = place.sync.xrange(place.key)
    assert fields["t"] == "", "to a reader of an earlier release it is an empty piece"
    assert place.sync.pttl(place.key) == -1


async def test_streams_of_one_writer_do_not_mix(place):
    shared = place.writer()
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
    stream = place.writer(losing).open("i", 1)
    stream.start({})
    stream.write("Hel")
    await place.sent(stream)
    losing.times = times
    stream.write("lo")
    await stream.end({"outcome": "done"})
    assert losing.times == 0
    assert [event.id for event in place.entries()] == ["1-0", "1-1", "1-2", "1-3"]
    assert place.text() == "Hello"
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
    stream = place.writer(away).open("i", 1)
    stream.start({})
    for piece in "Hello":
        stream.write(piece)
        await turns(5)
    assert away.rounds > 1
    away.gate.set()
    await stream.end({})
    assert place.text() == "Hello"
    assert [type(event) for event in place.entries()[:1] + place.entries()[-1:]] == [Start, End]


async def test_a_later_claim_fences_the_earlier_one(place):
    shared = place.writer()
    old, new = shared.open("i", 1), shared.open("i", 2)
    old.start({})
    old.write("old")
    await place.sent(old)
    new.start({})
    await place.sent(new)
    before = place.entries()
    old.write("late")
    await place.sent(old)
    with pytest.raises(StreamFenced, match="Invocation i"):
        await old.room()
    with pytest.raises(StreamFenced):
        await old.end({"outcome": "done"})
    assert place.entries() == before
    assert place.sync.pttl(place.key) == -1, "a fenced run must not start the time to live"
    new.write("new")
    await new.end({})
    assert "late" not in place.text()


async def test_the_end_of_a_fenced_run_tells_that_it_is_fenced(place):
    shared = place.writer()
    old, new = shared.open("i", 1), shared.open("i", 2)
    new.start({})
    await place.sent(new)
    with pytest.raises(StreamFenced):
        await old.end({"outcome": "done"})


async def test_room_waits_while_too_much_is_on_its_way(place, monkeypatch):
    monkeypatch.setattr(streams, "BACKLOG_CHARS", 10)
    held = Held(place.redis)
    stream = place.writer(held).open("i", 1)
    stream.write("x" * 10)
    await asyncio.wait_for(stream.room(), 1)
    stream.write("x")
    waiting = asyncio.create_task(stream.room())
    await turns()
    assert not waiting.done()
    held.gate.set()
    await asyncio.wait_for(waiting, 5)
    await stream.end({})
    assert place.text() == "x" * 11


async def test_room_waits_for_thinking_too(place, monkeypatch):
    monkeypatch.setattr(streams, "BACKLOG_CHARS", 10)
    held = Held(place.redis)
    stream = place.writer(held).open("i", 1)
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
    stream = place.writer(held).open("i", 1)
    stream.start({})
    await place.sent(stream)
    held.answers = [[redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'.")]]
    stream.write("Hel")
    await place.sent(stream)
    stream.write("lo")
    try:
        await stream.room()
        await asyncio.wait_for(stream.end({}), 5)
    except GaelpError:
        return
    assert place.text() == "Hello"


async def test_a_connection_lost_while_asking_who_overtook_us_holds_nobody_up(place):
    class Flaky(LosesReplies):
        rounds = 0

        def pipeline(self, transaction=True):
            self.rounds += 1
            self.times = 1 if self.rounds in {1, 3} else 0  # the write, and the question after its repetition
            return super().pipeline(transaction)

    flaky = Flaky(place.redis)
    stream = place.writer(flaky).open("i", 1)
    stream.write("Hello")
    await asyncio.wait_for(stream.end({}), 5)
    assert flaky.rounds > 3
    assert place.text() == "Hello"


async def test_text_that_cannot_be_written_holds_nobody_up(place):
    shared = place.writer()
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
        stream = StreamWriter(PlainLine(LosesReplies(client, times=lost)), Keys(), ttl_s=TTL_S).open("i", 1)
        stream.start({})
        for piece, pause in pieces:
            stream.write(piece)
            await turns(pause)
        await stream.end({})
        await client.aclose()
        return broker.events("gaelp:stream:i")

    kept, streams.AGAIN_S = streams.AGAIN_S, 0.0
    try:
        events = asyncio.run(write())
    finally:
        streams.AGAIN_S = kept
    reading = Reading()
    assert "".join(map(reading.take, events)) == "".join(piece for piece, _ in pieces)
    assert reading.end is not None
    assert [event.id for event in events] == [f"1-{number}" for number in range(len(events))]
