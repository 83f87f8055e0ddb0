"""A model is asked once whether it goes on exactly from a text."""

import pytest

from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.errors import StreamRestarted
from gaelp_tasks.retries import Snooze
from gaelp_tasks.tasks import resuming
from support.stops import WHOLE, Place, starts_over
from support.talker import Talker


async def test_a_model_is_asked_once_whether_it_goes_on(place):
    first = await place.stopped(3)
    assert first.at.client.probes == 0, "nobody needs to know yet"
    assert (await place.stopped(5)).at.client.probes == 3
    made, outcome = await place.runs()
    assert made.at.client.probes == 0
    assert outcome.result.text == WHOLE
    key = made.at.keys.continues("d1")
    assert made.broker.sync.get(key) == "yes"
    assert 0 < made.broker.sync.ttl(key) <= resuming.KNOWN_S


async def test_a_model_that_goes_on_otherwise_starts_over_with_the_next_claim(place):
    await place.stopped(7)
    otherwise = Talker()
    otherwise.exact = False
    made, outcome = await place.runs(client=otherwise)
    assert isinstance(outcome, Snooze)
    assert outcome.after_s == 0
    assert otherwise.asked == [], "the text was not gone on with"
    assert place.events[-1].facts["over"]
    assert made.broker.sync.get(made.at.keys.continues("d1")) == "no"
    await starts_over(place, client=otherwise)
    with pytest.raises(StreamRestarted):
        place.read()
    # and now it is known before
    other = Place()
    other.broker = place.broker
    other.broker.sync.delete("gaelp:stream:i", "gaelp:claims:i")
    await other.stopped(7)
    await starts_over(other)
    assert len(other.starts()) == 2
    await other.close()


async def test_a_node_that_refuses_a_text_to_go_on_from_is_asked_from_the_beginning(place):
    await place.stopped(7)
    place.broker.sync.set("gaelp:continues:d1", "yes")
    refusing = Talker()
    refusing.refuses = True
    _, outcome = await place.runs(client=refusing)
    assert isinstance(outcome, Snooze)
    await starts_over(place, client=refusing)


@pytest.mark.parametrize(
    ("client", "can"),
    [
        (Talker, True),
        (lambda: Talker(digest=""), True),
        (lambda: changed(exact=False), False),
        (lambda: changed(refuses=True), False),
    ],
)
async def test_a_probe_tells_whether_a_model_goes_on_exactly(client, can):
    assert await resuming.probe(client(), "m") is can


@pytest.mark.parametrize("first", [ChatResponse(thinking="hm"), ChatResponse(content="one")])
async def test_a_model_that_thinks_or_says_too_little_cannot_be_probed(first):
    class Says(Talker):
        async def chat(self, messages, **options):
            yield first
            yield ChatResponse(content="one")

    assert await resuming.probe(Says(), "m") is False


def changed(**how):
    made = Talker()
    vars(made).update(how)
    return made
