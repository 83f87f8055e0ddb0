"""What comes between two claims of a run: cancels, ends, late writers, other answers."""

import json

import pytest

from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.readers import Reading
from gaelp_tasks.retries import Cut, Done, Snooze
from gaelp_tasks.streams import End, Piece, Start
from gaelp_tasks.tasks import walk as walking
from gaelp_tasks.tasks.generation import Generation
from gaelp_tasks.tasks.resuming import CannotResume, look_back, take_up
from support.fakes import FakeBroker
from support.stops import ASKED, WHOLE, Place
from support.talker import Talker


async def test_a_known_answer_that_was_not_told_to_its_end_is_told_again(place):
    asked = {"cache": True}
    await place.runs(**asked)
    made = place.bench()
    run = made.run("j", **(ASKED | asked))
    stream = made.at.streams.open("j", 1)
    way, _ = await look_back(stream, run.asked, made.at)
    stream.start({"way": way._asdict()})
    stream.write(WHOLE, tokens=0)
    await stream.arrived()
    made.broker.sync.set(made.at.keys.claims("j"), 1)
    outcome = await made.walk(made.run("j", **(ASKED | asked)))
    assert outcome.result.text == WHOLE
    assert outcome.result.cached
    assert not [event for event in made.events("j") if isinstance(event, Start)][-1].resumes
    assert {event.tokens for event in made.events("j") if isinstance(event, Piece)} == {0}


async def test_a_known_answer_is_not_put_behind_a_text_that_is_out(place):
    asked = {"cache": True}
    await place.runs(**asked)
    broker, place.broker = place.broker, FakeBroker()
    await place.stopped(7, **asked)
    for key in broker.sync.scan_iter("gaelp:cache:*"):
        place.broker.sync.restore(key, 0, broker.sync.dump(key))
    _, outcome = await place.runs(**asked)
    assert outcome.result.text == place.read() == WHOLE
    assert not outcome.result.cached


async def test_a_cancel_while_it_waits_keeps_the_text_so_far(place):
    await place.stopped(7)
    request_cancel(place.broker.sync, place.benches[-1].at.keys, "i", ttl_s=60.0)
    made, outcome = await place.runs()
    assert isinstance(outcome, Cut)
    assert outcome.result.text == place.read() == "".join(made.at.client.pieces[:7])
    assert outcome.result.usage.completion_tokens == 7
    assert made.at.client.asked == []


async def test_an_answer_of_several_claims_is_told_again_as_a_whole(place):
    await place.stopped(7)
    _, first = await place.runs()
    made, again = await place.runs()
    assert again == first
    assert made.at.client.asked == []
    assert read_to_its_end(place.events) == WHOLE
    assert not place.starts()[-1].resumes
    assert {event.tokens for event in place.events if isinstance(event, Piece) and event.claim == 3} == {0}
    assert read_to_its_end([event for event in place.events if event.claim == 3]) == WHOLE


def read_to_its_end(events):
    reading = Reading()
    text = []
    for event in events:
        text.append(reading.take(event))
        if isinstance(event, End):
            return "".join(text)
    raise AssertionError("it has no end")


async def test_what_a_late_run_adds_until_the_start_is_gone_on_from(place):
    made = await place.stopped(3, reason=None)
    late = made.at.streams.open("i", 1)
    late.next = 50
    stream = made.at.streams.open("i", 2)
    asked = made.run(**ASKED).asked
    _, earlier = await look_back(stream, asked, made.at)
    late.write("late")
    await late.arrived()
    stream.start({"resumes": True, "from": 1})
    await stream.arrived()
    found = await take_up(stream, earlier, made.at)
    assert (found.text, found.tokens) == (earlier.text + "late", 4)


async def test_a_late_thought_makes_it_start_over(place):
    made = await place.stopped(3, reason=None)
    late = made.at.streams.open("i", 1)
    late.next = 50
    stream = made.at.streams.open("i", 2)
    _, earlier = await look_back(stream, made.run(**ASKED).asked, made.at)
    late.think("hm")
    await late.arrived()
    stream.start({"resumes": True, "from": 1})
    await stream.arrived()
    with pytest.raises(CannotResume):
        await take_up(stream, earlier, made.at)


async def test_a_run_that_names_no_model_stays_with_the_one_that_began(place):
    await place.stopped(7, model=None)

    class Chooses(Talker):
        async def resolve(self, model, *, embeds=False):
            return model or "another"

    made, outcome = await place.runs(client=Chooses(), model=None)
    assert outcome.result.model == "talker"
    assert made.at.client.asked[0][1]["model"] == "talker"
    assert outcome.result.text == place.read() == WHOLE


async def test_a_run_that_began_in_time_and_had_to_make_way_does_not_expire(place):
    await place.stopped(7, queue_ttl_s=60.0)
    again = place.bench()
    outcome = await again.walk(again.run(**(ASKED | {"queue_ttl_s": 60.0}), queued_s=90.0))
    assert isinstance(outcome, Done)
    assert outcome.result.text == WHOLE
    other = place.bench()
    late = other.run("another", **(ASKED | {"queue_ttl_s": 60.0}), queued_s=90.0)
    assert isinstance(await other.walk(late), Cut), "one that never began does"


async def test_an_answer_from_the_cache_makes_nobody_a_writer(place):
    made = place.bench()
    run = made.run(**ASKED)
    work = Generation(run, run.asked, made.at)

    async def known(model):
        return {"text": "known", "data": {}, "tool_calls": []}

    work._known.recall = known
    outcome = await walking.walk(run, work, made.at)
    assert outcome.result.cached
    assert made.at.demand.writing == set()


async def test_an_end_that_came_late_is_not_told_twice_in_one_chain(place, monkeypatch):
    """Claim 1 ends between the look of claim 2 and its start; claim 2 dies before Celery has heard of it."""
    alone = Place()
    _, whole = await alone.runs()
    await alone.close()
    await place.stopped(7, reason=None)
    looks = walking.look_back

    async def slow(stream, asked, at):
        found = await looks(stream, asked, at)
        rest = Talker().pieces[7:]
        facts = {
            "outcome": "done",
            "stop_reason": "stop",
            "usage": whole.result.usage.model_dump(),
            "result": whole.result.model_dump(mode="json", exclude={"text"}),
        }
        await at.redis.xadd(stream.key, {"t": "".join(rest), "n": str(len(rest))}, id="1-1000")
        await at.redis.xadd(stream.key, {"end": json.dumps(facts)}, id="1-1001")
        return found

    monkeypatch.setattr(walking, "look_back", slow)
    second = place.bench()
    assert (await second.walk(second.run(**ASKED))).result.text == WHOLE
    monkeypatch.setattr(walking, "look_back", looks)
    third = place.bench()
    assert (await third.walk(third.run(**ASKED))).result.text == WHOLE


async def test_texts_of_two_runs_are_never_glued(place, monkeypatch):
    """A claim in between started over, after this one had looked and before its start."""
    await place.stopped(7, reason=None)
    third = place.bench()
    await third.at.redis.incr(third.at.keys.claims("i"))
    looks = walking.look_back

    async def slow(stream, asked, at):
        found = await looks(stream, asked, at)
        await at.redis.xadd(stream.key, {"start": json.dumps({"agent": "chat"})}, id="2-0")
        await at.redis.xadd(stream.key, {"t": "Once upon", "n": "2"}, id="2-1")
        return found

    monkeypatch.setattr(walking, "look_back", slow)
    assert isinstance(await third.walk(third.run(**ASKED)), Snooze), "the next claim starts over"
