"""A run that is interrupted goes on from its text where that is exact."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.errors import NodeUnreachable
from gaelp_tasks.models import Message, Usage
from gaelp_tasks.retries import Done, Retry
from gaelp_tasks.streams import Pause, Piece
from gaelp_tasks.tasks.wasted import wasted_in
from support.stops import LENGTH, WHOLE, Place, undisturbed
from support.talker import Talker


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


@pytest.mark.parametrize("asked", [{"parser": "lines"}, {"agent": "reasoning"}, {"options": {}}], ids=str)
async def test_what_is_plain_text_goes_on(place, asked):
    await place.stopped(7, **asked)
    _, outcome = await place.runs(**asked)
    assert outcome.result.text == place.read() == WHOLE
    if "parser" in asked:
        assert outcome.result.data["parsed"] == [WHOLE.strip()]
