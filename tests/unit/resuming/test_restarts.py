"""A run that is interrupted starts over where to go on would not be exact."""

import pytest

from gaelp_tasks import registry
from gaelp_tasks.agents import ChatAgent
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.errors import StreamRestarted
from gaelp_tasks.tasks import resuming
from support.stops import WHOLE, starts_over
from support.talker import Talker


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
