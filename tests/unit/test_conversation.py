"""What a chat remembers, and what of it is sent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.cli.conversation import CUT_MARK, Conversation
from gaelp_tasks.models.invocation import Invocation

PLENTY = 10**9


def talk(*answers, system=""):
    said = Conversation(system=system)
    for number, answer in enumerate(answers):
        said = said.asked(f"q{number}").answered(answer)
    return said.asked("last?")


def contents(messages):
    return [message["content"] for message in messages]


def test_everything_that_was_said_is_sent_again_system_prompt_first():
    said = talk("a0", "a1", system="Be brief.")
    assert said.messages(PLENTY) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q0"},
        {"role": "assistant", "content": "a0"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "last?"},
    ]
    assert said.left_out(PLENTY) == 0


def test_an_answer_that_was_broken_off_stays_and_is_marked():
    said = Conversation().asked("q").answered("half an ans", cut=True).asked("and?")
    assert contents(said.messages(PLENTY)) == ["q", f"half an ans\n{CUT_MARK}", "and?"]
    nothing_came = Conversation().asked("q").answered("", cut=True).asked("and?")
    assert contents(nothing_came.messages(PLENTY)) == ["q", CUT_MARK, "and?"]


def test_a_question_that_failed_is_not_repeated():
    said = Conversation().asked("failed").asked("again")
    assert contents(said.messages(PLENTY)) == ["again"]
    assert said.left_out(PLENTY) == 0
    assert said.without_last().turns[-1].question == "failed"


@given(
    answers=st.lists(st.text(max_size=200), max_size=8),
    limit=st.integers(0, 3000),
    system=st.sampled_from(["", "Be brief."]),
)
def test_whatever_does_not_fit_leaves_turn_by_turn_the_oldest_first(answers, limit, system):
    said = talk(*answers, system=system)
    sent, everything = said.messages(limit), said.messages(PLENTY)
    opening = 1 if system else 0
    assert sent[:opening] == everything[:opening]
    assert sent[-1]["content"] == "last?"
    rest = sent[opening:]
    assert rest == everything[len(everything) - len(rest) :], "what stays is the end, without gaps"
    assert [message["role"] for message in rest[:-1]] == ["user", "assistant"] * said_turns(rest)
    assert said.left_out(limit) == len(answers) - said_turns(rest)
    if rest[:-1]:
        size = Invocation.parse({"messages": sent}, max_prompt_bytes=PLENTY).size_bytes
        assert size <= limit, "as the task counts it, too"


def said_turns(rest):
    return len(rest) // 2


@pytest.mark.parametrize("cut", [False, True])
def test_it_can_be_saved_for_programs_and_for_people(cut):
    said = Conversation(system="Be brief.").asked("q").answered("a", cut=cut).asked("open")
    assert json.loads(json.dumps(said.as_json())) == {
        "system": "Be brief.",
        "turns": [
            {"question": "q", "answer": "a", "cut": cut},
            {"question": "open", "answer": None, "cut": False},
        ],
    }
    text = said.as_text()
    for shown in (
        "**System:** Be brief.",
        "**You:** q",
        "a *(stopped)*" if cut else "\n\na\n\n",
        "*(no answer)*",
    ):
        assert shown in text
