"""A run that is interrupted goes on from its text where that is exact, and starts over where it is not."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks import registry, streams
from gaelp_tasks.agents import ChatAgent
from gaelp_tasks.cancellation import Reason, request_cancel
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.errors import NodeUnreachable, StreamRestarted
from gaelp_tasks.models import Invocation, Message, Usage
from gaelp_tasks.retries import Cut, Done, Retry, Snooze
from gaelp_tasks.streams import End, Pause, Piece, Reading, Start
from gaelp_tasks.tasks import resuming
from gaelp_tasks.tasks import walk as walking
from gaelp_tasks.tasks.generation import Generation
from gaelp_tasks.tasks.resuming import (
    CannotResume,
    Earlier,
    continued,
    fits,
    is_plain,
    look_back,
    options_left,
    take_up,
)
from gaelp_tasks.tasks.wasted import wasted_in
from support.fakes import FakeBroker, Workbench
from support.talker import Talker

SOON_S = 10
WHOLE = "".join(Talker().pieces)
LENGTH = len(Talker().pieces)
ASKED = {"prompt": "Tell me a story", "model": "talker", "options": {"temperature": 0}}


class Place:
    """Processes with a Talker each, one after another, on one Redis."""

    def __init__(self, **chosen):
        self.broker = FakeBroker()
        self.chosen = chosen
        self.benches = []

    def bench(self, client=None):
        loop = asyncio.get_running_loop()
        self.benches.append(Workbench(loop, self.broker, client or Talker(), **self.chosen))
        return self.benches[-1]

    async def stopped(self, at, *, client=None, reason=Reason.PREEMPTION, **asked):
        """A run that was stopped with so many pieces out; no reason: its process died."""
        made = self.bench(client)
        made.at.client.stop_at = at
        walking = asyncio.create_task(made.walk(made.run(**(ASKED | asked))))
        await asyncio.wait_for(made.at.client.waits.wait(), SOON_S)
        if reason is None:
            await made.written()
            walking.cancel()
            await asyncio.gather(walking, return_exceptions=True)
        else:
            made.at.runs.stop("i", reason)
            assert await asyncio.wait_for(walking, SOON_S) == Snooze(0.0, f"stopped: {reason}")
        return made

    async def runs(self, *, client=None, **asked):
        """The process that runs it next, and the outcome."""
        made = self.bench(client)
        return made, await asyncio.wait_for(made.walk(made.run(**(ASKED | asked))), SOON_S)

    @property
    def events(self):
        return self.benches[-1].events()

    def starts(self):
        return [event for event in self.events if isinstance(event, Start)]

    def read(self):
        """What a reader sees who has been there from the beginning."""
        reading = Reading()
        return "".join(map(reading.take, self.events))

    async def close(self):
        for made in self.benches:
            await made.redis.aclose()


@pytest.fixture
async def place(monkeypatch):
    monkeypatch.setattr(streams, "AGAIN_S", 0.0)
    made = Place()
    yield made
    await made.close()


async def undisturbed():
    alone = Place()
    _, outcome = await alone.runs()
    await alone.close()
    return outcome.result


@pytest.mark.parametrize(
    "reason", [Reason.PREEMPTION, Reason.EVICTION, Reason.SHUTDOWN, Reason.LEASE, None], ids=str
)
async def test_it_goes_on_from_the_text_and_is_one_text_to_its_reader(place, reason):
    await place.stopped(7, reason=reason)
    made, outcome = await place.runs()
    alone = await undisturbed()
    assert isinstance(outcome, Done)
    assert (outcome.result.text, outcome.result.usage) == (alone.text, alone.usage)
    assert place.read() == WHOLE
    assert made.end()["usage"] == alone.usage.model_dump()
    [(conversation, options)] = made.at.client.asked
    assert conversation[-1] == Message(role="assistant", content="".join(made.at.client.pieces[:7]))
    assert conversation[:-1] == (Message(role="user", content="Tell me a story"),)
    assert options["temperature"] == 0
    assert [(start.resumes, start.first) for start in place.starts()] == [(False, 1), (True, 1)]
    pauses = [event.facts for event in place.events if isinstance(event, Pause)]
    at = made.now()
    assert pauses == ([] if reason is None else [{"reason": reason.value, "tokens": 7, "at": at}])


@given(st.lists(st.tuples(st.integers(0, LENGTH - 1), st.booleans()), max_size=4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_however_often_and_wherever_it_is_stopped_text_and_usage_are_those_of_one_run(stops, limited):
    options = {"temperature": 0} | ({"num_predict": LENGTH - 2} if limited else {})
    stops = sorted((at, dies) for at, dies in stops if not limited or at < LENGTH - 2)

    async def story():
        alone, place = Place(), Place()
        _, expected = await alone.runs(options=options)
        for at, dies in stops:
            await place.stopped(at, reason=None if dies else Reason.SHUTDOWN, options=options)
        _, outcome = await place.runs(options=options)
        read = place.read()
        for one in (alone, place):
            await one.close()
        return expected.result, outcome.result, read

    expected, found, read = asyncio.run(story())
    assert (found.text, found.stop_reason, found.usage) == (
        expected.text,
        expected.stop_reason,
        expected.usage,
    )
    assert read == expected.text


async def test_num_predict_is_lowered_by_what_came(place):
    options = {"temperature": 0, "num_predict": 10}
    await place.stopped(7, options=options)
    made, outcome = await place.runs(options=options)
    assert made.at.client.asked[0][1]["num_predict"] == 3
    assert outcome.result.stop_reason == "length"
    assert outcome.result.usage == Usage(prompt_tokens=4, completion_tokens=10)


@pytest.mark.parametrize("before", [4, 7])
async def test_tokens_of_earlier_claims_count_against_what_is_paid_for(place, before):
    await place.stopped(before, most_tokens=7)
    made, outcome = await place.runs(most_tokens=7)
    assert (outcome.result.text, outcome.result.stop_reason) == ("".join(made.at.client.pieces[:7]), "budget")
    assert place.read() == outcome.result.text
    assert outcome.result.usage.completion_tokens == 7


@pytest.mark.parametrize(("asked", "lost"), [({}, 0), ({"think": True}, 7)])
async def test_tokens_are_wasted_where_a_run_starts_over_and_not_where_it_goes_on(place, asked, lost):
    await place.stopped(7, **asked)
    await place.runs(**asked)
    assert wasted_in(place.events) == lost
    assert wasted_in(place.events[:-1]) == 0, "nobody knows before the end"


async def test_what_is_whole_by_its_limit_needs_no_model(place):
    async def died_at_the_last_token():
        return await place.stopped(5, reason=None)

    await died_at_the_last_token()
    made, outcome = await place.runs(options={"temperature": 0, "num_predict": 5})
    assert made.at.client.asked == []
    assert isinstance(outcome, Done)
    assert (outcome.result.text, outcome.result.stop_reason) == ("".join(made.at.client.pieces[:5]), "length")
    assert outcome.result.usage.completion_tokens == 5


async def test_before_any_text_it_just_starts(place):
    await place.stopped(0)
    _, outcome = await place.runs()
    assert outcome.result.text == place.read() == WHOLE
    assert [start.resumes for start in place.starts()] == [False, False]
    assert not any(isinstance(event, Pause) for event in place.events)


async def test_a_retry_after_a_lost_node_goes_on_too(place):
    class Breaks(Talker):
        async def chat(self, messages, **options):
            async for chunk in super().chat(messages, **options):
                if chunk.content == self.pieces[4]:
                    raise NodeUnreachable("gone")
                yield chunk

    _, outcome = await place.runs(client=Breaks())
    assert isinstance(outcome, Retry)
    assert place.events[-1].facts["reason"] == "retry"
    _, outcome = await place.runs()
    assert outcome.result.text == place.read() == WHOLE


async def test_pieces_that_gathered_before_a_crash_count_one_by_one(place):
    made = await place.stopped(7, reason=None)
    assert len([event for event in made.events() if isinstance(event, Piece)]) < 7
    _, outcome = await place.runs()
    assert outcome.result.usage == (await undisturbed()).usage


async def test_characters_of_several_tokens_are_counted_as_the_node_counts_them(place):
    class Counts(Talker):
        """Its second piece is one character of four tokens."""

        async def chat(self, messages, **options):
            more = 3 if "\U0001f331" in messages[-1].content else 0
            async for chunk in super().chat(messages, **options):
                usage = chunk.usage and Usage(
                    prompt_tokens=chunk.usage.prompt_tokens + more,
                    completion_tokens=chunk.usage.completion_tokens,
                )
                yield chunk.model_copy(update={"usage": usage})

    pieces = (" a", "\U0001f331", *Talker().pieces)
    options = {"temperature": 0, "num_predict": 12}
    await place.stopped(5, client=Counts(*pieces), options=options)
    made, outcome = await place.runs(client=Counts(*pieces), options=options)
    assert made.at.client.asked[-1][1]["num_predict"] == 12 - 8
    assert outcome.result.text == place.read() == "".join(pieces[:9])
    assert outcome.result.usage == Usage(prompt_tokens=4, completion_tokens=12)
    assert [asked["num_predict"] for _, asked in made.at.client.asked[:-1]] == [1, 1]


# -- what does not go on


class Custom(ChatAgent):
    """Its class does not say that it can go on."""


@pytest.fixture
def custom(monkeypatch):
    monkeypatch.setattr(registry.AGENTS, "registered", {"custom": Custom})


@pytest.mark.parametrize(
    "asked",
    [
        {"format": "json"},
        {"tools": [{"type": "function"}]},
        {"think": False},
        {"agent": "reasoning", "mode": "brief"},
        {"agent": "coding"},
        {"agent": "custom"},
        {"options": {"seed": 1}},
    ],
    ids=str,
)
async def test_what_is_no_plain_text_starts_over_and_its_reader_is_told(place, custom, asked):
    await place.stopped(7, **asked)
    made, outcome = await place.runs(**asked)
    assert made.at.client.asked[0][0][-1].role == "user"
    assert outcome.result.text == WHOLE
    with pytest.raises(StreamRestarted):
        place.read()
    assert [start.resumes for start in place.starts()] == [False, False]


@pytest.mark.parametrize("asked", [{"parser": "lines"}, {"agent": "reasoning"}, {"options": {}}], ids=str)
async def test_what_is_plain_text_goes_on(place, asked):
    await place.stopped(7, **asked)
    _, outcome = await place.runs(**asked)
    assert outcome.result.text == place.read() == WHOLE
    if "parser" in asked:
        assert outcome.result.data["parsed"] == [WHOLE.strip()]


async def starts_over(place, **how):
    made, outcome = await place.runs(**how)
    assert outcome.result.text == WHOLE
    assert made.at.client.asked[-1][0][-1].role == "user"
    assert not place.starts()[-1].resumes
    assert outcome.result.usage == (await undisturbed()).usage


async def test_another_model_of_that_name_starts_over(place):
    await place.stopped(7)
    await starts_over(place, client=Talker(digest="d2"))


async def test_a_model_without_a_digest_starts_over(place):
    await place.stopped(7, client=Talker(digest=""))
    await starts_over(place, client=Talker(digest=""))


async def test_another_prompt_of_the_agent_starts_over(place, monkeypatch):
    await place.stopped(7)
    monkeypatch.setattr(resuming, "_code", lambda _: "another release")
    await starts_over(place)


async def test_a_text_that_began_with_thinking_starts_over(place):
    class Thinks(Talker):
        async def chat(self, messages, **options):
            yield ChatResponse(thinking="hm")
            async for chunk in super().chat(messages, **options):
                yield chunk

    await place.stopped(7, client=Thinks())
    await starts_over(place)


async def test_a_text_that_lost_bytes_of_a_character_starts_over(place):
    pieces = ("half a ", "\ufffd", *Talker().pieces)
    await place.stopped(3, client=Talker(*pieces))
    await starts_over(place)


async def test_a_text_that_might_not_fit_into_the_context_starts_over(place):
    place.chosen["num_ctx"] = 10
    await place.stopped(7)
    await starts_over(place)


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


# -- the probe


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


# -- between two claims


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


# -- by themselves


def invocation(**asked):
    return Invocation.parse({"prompt": "Hi"} | asked, max_prompt_bytes=1000)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"temperature": 0, "seed": 1}, True),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "seed": 1}, False),
        ({"seed": 1}, False),
        ({"num_predict": 5}, True),
        ({"num_predict": -1}, True),
        ({"num_predict": True}, False),
        ({"num_predict": "5"}, False),
        ({"num_predict": 5.0}, False),
    ],
)
def test_with_a_seed_and_chance_the_dice_would_fall_again(options, plain):
    assert is_plain(invocation(options=options)) is plain


@pytest.mark.parametrize(
    ("text", "tokens", "num_ctx", "enough"),
    [("a" * 500, 100, 102, True), ("a" * 500, 100, 100, False), ("\U0001f331" * 20, 20, 90, True),
     ("\U0001f331" * 20, 20, 80, False), ("a", 4000, 0, True), ("a", 4096, 0, False)],
)  # fmt: skip
def test_what_may_be_as_long_as_the_context_does_not_surely_fit(text, tokens, num_ctx, enough):
    earlier = Earlier(first=1, text=text, tokens=tokens, last="1-1")
    assert fits(invocation(), earlier, ChatAgent, num_ctx) is enough


def test_an_image_is_not_plain():
    assert not is_plain(invocation(images=["aGk="]))


def test_the_text_stands_behind_what_the_caller_began_for_the_assistant():
    asked = invocation(
        prompt=None, messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}]
    )
    assert continued(asked.input, "llo")[-1] == Message(role="assistant", content="Hello")
    assert len(continued(asked.input, "llo")) == 2


@given(st.integers(-2, 30), st.integers(0, 30))
def test_what_is_left_of_a_limit_and_what_came_make_the_limit(limit, tokens):
    left = options_left({"num_predict": limit, "top_k": 1}, tokens)
    if limit <= 0:
        assert left == {"num_predict": limit, "top_k": 1}
    elif tokens >= limit:
        assert left is None
    else:
        assert left["num_predict"] + tokens == limit
        assert left["top_k"] == 1


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
