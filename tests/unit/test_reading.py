"""Token streams, read: late, again, from an id, over a run that started over."""

import pytest

from gaelp_tasks import readers
from gaelp_tasks.errors import StreamRestarted
from gaelp_tasks.line import PlainLine
from gaelp_tasks.readers import FIRST, Reading, abefore_text, afollow, before_text, follow
from gaelp_tasks.streams import LAST_NUMBER, End, Pause, Piece, Start
from support.fakes import stream_place


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.redis)])
async def place(request, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_S", 0.01)
    url = request.getfixturevalue("broker").url if request.param == "real" else None
    async with stream_place(url) as made:
        yield made


async def written(place, *pieces, claim=1, **facts):
    stream = place.writer().open("i", claim)
    stream.start({"claim": claim} | facts)
    for piece in pieces:
        stream.write(piece)
        await place.sent(stream)
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
    events = afollow(PlainLine(place.redis), place.key)
    assert await anext(events) is None
    stream = await written(place, "a")
    assert [await anext(events), await anext(events)] == place.entries()
    stream.write("b")
    later = await anext(events)
    while later is None:
        later = await anext(events)
    assert (later.id, later.text) == ("1-2", "b")
    await stream.end({})
    await events.aclose()


async def test_more_entries_than_one_read_takes_arrive_once_each(place, monkeypatch):
    monkeypatch.setattr(readers, "BATCH", 3)
    await written(place, *map(str, range(10)))
    assert read(place) == place.entries()
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
    assert await begin(place) == f"{claims[-1] - 1}-{LAST_NUMBER}"
    events = read(place, await begin(place))
    assert [event.id for event in events] == [f"{claims[-1]}-{number}" for number in range(3)]


async def begin(place):
    """What both ways to ask say, which must not differ."""
    found = before_text(place.sync, place.key)
    assert await abefore_text(PlainLine(place.redis), place.key) == found
    return found


async def test_before_any_run_reading_begins_at_the_beginning(place):
    assert await begin(place) == FIRST


async def test_a_text_that_several_runs_wrote_is_read_from_its_beginning_and_in_one(place):
    await written(place, "of another text")
    first = await written(place, "a", "b", claim=2)
    first.pause({"reason": "preemption"})
    await first.arrived()
    await written(place, "c", claim=5, resumes=True, **{"from": 2})
    last = await written(place, claim=6, resumes=True, **{"from": 2})
    last.write("d")
    await last.end({"outcome": "done"})
    events = read(place, await begin(place))
    assert [type(event) for event in events].count(Start) == 3
    assert [event.facts for event in events if isinstance(event, Pause)] == [{"reason": "preemption"}]
    reading = Reading()
    assert "".join(map(reading.take, events)) == "abcd"
    assert reading.end is not None


async def test_a_reader_who_sees_a_run_resume_and_a_later_one_start_over_is_told(place):
    await written(place, "a")
    await written(place, "b", claim=2, resumes=True, **{"from": 1})
    await written(place, "c", claim=3)
    reading = Reading()
    with pytest.raises(StreamRestarted):
        list(map(reading.take, read(place)))
    assert reading.claim == 2
    assert [event.claim for event in read(place, await begin(place))] == [3, 3]


def test_a_silent_second_and_an_empty_piece_add_nothing():
    reading = Reading()
    assert reading.take(None) == ""
    assert reading.take(Piece("1-1", 1, "")) == ""
    assert not reading.read
    end = End("1-2", 1, {})
    assert reading.take(end) == ""
    assert reading.end is end
