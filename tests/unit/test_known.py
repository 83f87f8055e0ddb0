"""What an entry of the cache is called, and how vectors and answers come back from it."""

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.agents import BaseAgent, ChatAgent, CodingAgent
from gaelp_tasks.cache import fingerprint
from gaelp_tasks.models import Invocation, InvocationResult
from gaelp_tasks.tasks import known
from gaelp_tasks.tasks.known import (
    NOT_IN_NAME,
    answer_name,
    code_of,
    may_repeat,
    packed,
    read_answer,
    unpacked,
    vector_names,
    written,
)

FIXED = {"temperature": 0}
numbers = st.floats(allow_nan=False, allow_infinity=False)


def invocation(**given):
    return Invocation.parse({"prompt": "Hi", "options": FIXED} | given, max_prompt_bytes=10_000)


def name(asked=None, *, digests=("d",), code=("c",), context=(2048,)):
    return answer_name(asked or invocation(), digests=digests, code=code, context=list(context))


# -- vectors


@given(st.lists(numbers, min_size=1, max_size=30))
def test_a_vector_comes_back_exactly(vector):
    assert unpacked(packed(tuple(vector))) == tuple(vector)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_a_vector_of_short_floats_takes_four_bytes_a_number(vector):
    text = packed(tuple(vector))
    assert text[0] == "f"
    assert unpacked(text) == tuple(vector)


def test_a_vector_as_ollama_writes_it_takes_eight_and_stays_the_same():
    vector = (0.012345678, -0.1, 1.0)
    text = packed(vector)
    assert text[0] == "d"
    assert json.dumps(unpacked(text)) == json.dumps(vector)


@given(st.text() | st.none())
def test_junk_is_no_vector(text):
    found = unpacked(text)
    assert found is None or all(map(math.isfinite, found))


@pytest.mark.parametrize(
    "text", [None, "", "f", "d", "x" * 9, "fAAAA!", "fAAA", "sAAAAAAAA", "é", packed((1.0,))[:-3]]
)
def test_a_damaged_vector_is_a_miss(text):
    assert unpacked(text) is None


def test_a_vector_that_is_not_finite_is_a_miss():
    data = known.b64encode(struct.pack("<2d", math.nan, math.inf)).decode()
    assert unpacked("d" + data) is None


VECTOR = {"tenant": "t", "digest": "d", "context": [2048]}


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": None},
        {"tenant": "u"},
        {"tenant": "null"},
        {"digest": "e"},
        {"context": [4096]},
        {"context": []},
    ],
)
def test_a_vectors_name_changes_with_everything_that_changes_the_vector(other):
    texts = ["a", "b", "a"]
    first, second, third = vector_names(texts, **VECTOR)
    assert first == third != second
    assert not {*vector_names(texts, **(VECTOR | other))} & {first, second}


@given(st.lists(st.text(), unique=True, max_size=20), st.text())
def test_two_texts_never_share_a_name_and_no_name_tells_its_text(texts, tenant):
    names = vector_names(texts, **(VECTOR | {"tenant": tenant}))
    assert len({*names}) == len(texts)
    assert all(len(one) == 64 and not {*one} - {*"0123456789abcdef"} for one in names)


# -- answers

#: another value for each part of an invocation that changes the answer
OTHER = {
    "options": {"temperature": 0, "num_predict": 5},
    "format": "json",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "mode": "brief",
    "documents": ["a document"],
    "parser": "json",
    "think": True,
    "tenant": "t",
}
#: another value for each part that does not
SAME = {
    "tier": "batch",
    "priority": 9,
    "deadline_s": 5.0,
    "stall_timeout_s": 5.0,
    "queue_ttl_s": 5.0,
    "idempotency_key": "k",
    "most_tokens": 5,  # what was told whole is free
    "metadata": {"a": 1},
    "cache": True,
    "agent": "coding",  # code_of stands for it
    "model": "other",  # its digest stands for it
}
INPUT = {"prompt", "messages", "images"}


def test_every_part_of_an_invocation_is_either_in_the_name_or_not_on_purpose():
    assert Invocation.model_fields.keys() == OTHER.keys() | SAME.keys() | INPUT
    assert {*NOT_IN_NAME} == SAME.keys() | INPUT


@pytest.mark.parametrize("part", OTHER)
def test_what_changes_the_answer_changes_its_name(part):
    assert name(invocation(**{part: OTHER[part]})) != name()


@pytest.mark.parametrize("part", SAME)
def test_what_does_not_change_the_answer_does_not_change_its_name(part):
    assert name(invocation(**{part: SAME[part]})) == name()


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hi "}],
        [{"role": "system", "content": "Hi"}],
        [{"role": "user", "content": "Hi", "images": ["aGk="]}],
        [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}],
    ],
)
def test_another_conversation_has_another_name(messages):
    assert name(invocation(prompt=None, messages=messages)) != name()


def test_the_same_conversation_given_in_another_way_has_the_same_name():
    assert name(invocation(prompt=None, messages=[{"role": "user", "content": "Hi"}])) == name()
    one = invocation(images=["aGk="])
    other = invocation(prompt=None, messages=[{"role": "user", "content": "Hi", "images": ["aGk="]}])
    assert name(one) == name(other)


@pytest.mark.parametrize(
    "other", [{"digests": ["e"]}, {"digests": ["d", "e"]}, {"code": ["x"]}, {"context": [1]}]
)
def test_another_model_code_or_context_has_another_name(other):
    assert name(**other) != name()


@given(st.none() | st.text(min_size=1, max_size=20), st.none() | st.text(min_size=1, max_size=20))
def test_two_tenants_never_share_and_no_tenant_is_one_of_its_own(one, other):
    assert (name(invocation(tenant=one)) == name(invocation(tenant=other))) == (one == other)


@pytest.mark.parametrize(
    ("options", "tools", "repeats"),
    [
        ({"temperature": 0}, None, True),
        ({"temperature": 0.0}, None, True),
        ({"seed": 0}, None, True),
        ({"seed": 7, "temperature": 1.0}, None, True),
        ({"temperature": 0}, [OTHER["tools"][0]], True),
        (None, None, False),
        ({}, None, False),
        ({"temperature": 0.1}, None, False),
        ({"temperature": False}, None, False),
        ({"temperature": "0"}, None, False),
        ({"seed": -1}, None, False),
        ({"seed": True}, None, False),
        ({"seed": 1.5}, None, False),
        ({"temperature": 0}, ["my_tool"], False),
    ],
)
def test_only_what_would_come_out_the_same_is_kept(options, tools, repeats):
    assert may_repeat(invocation(options=options, tools=tools)) is repeats


def test_another_agent_prompt_or_source_file_is_other_code(tmp_path, monkeypatch):
    class Mine(BaseAgent):
        system_prompt = "Be brief."

    before = code_of(Mine)
    assert before == code_of(Mine)
    Mine.system_prompt = "Be long."
    assert len({before, code_of(Mine), code_of(ChatAgent), code_of(CodingAgent)}) == 4
    monkeypatch.setattr(known, "_source", lambda file: f"{file} was edited")
    assert code_of(ChatAgent) != before


def test_what_has_no_source_file_still_has_a_name():
    made = type("Made", (BaseAgent,), {"__module__": "nowhere"})
    assert code_of(made) == code_of(made)
    assert code_of(len) != code_of(json.dumps)


def test_an_answer_comes_back_with_its_tool_calls_and_data():
    result = InvocationResult(
        id="i", agent="chat", model="m", node="n", tier="batch", priority=5, text="ünï\n", stop_reason="stop",
        attempts=2, tool_calls=({"function": {"name": "f"}},), data={"parsed": [1, None]},
    )  # fmt: skip
    text = written(result)
    assert "attempts" not in text
    assert read_answer(text) == {
        "text": "ünï\n",
        "tool_calls": ({"function": {"name": "f"}},),
        "data": {"parsed": [1, None]},
    }


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "5", "{}", '{"text": 5}', '{"text": "a", "tool_calls": 5}']
)
def test_junk_is_no_answer(text):
    assert read_answer(text) is None


def test_a_fingerprint_tells_every_value_apart_and_refuses_what_is_no_json():
    values = [None, "null", 0, "0", [], {}, [[]], ["a", "b"], ["a", ["b"]], {"a": 1}, {"a": "1"}, True, 1.5]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        fingerprint({1, 2})
