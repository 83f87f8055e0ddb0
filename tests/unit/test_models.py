"""What a call may look like, and what is said about one that may not."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models import Invocation, Message, Tier
from support.fakes import assert_one_sentence

LIMIT = 1000
PIXEL = "iVBORw0KGgo="
NAN, INF = math.nan, math.inf


def parse(**asked):
    return Invocation.parse(asked, max_prompt_bytes=LIMIT)


def complaint(**asked):
    with pytest.raises(InvalidInvocation) as caught:
        parse(**asked)
    return str(caught.value)


def calls_with(arguments):
    return [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n\t\u2003"}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"messages": []}, "prompt is empty"),
        ({"prompt": {"text": " "}}, "prompt is empty"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "not both"),
        ({"prompt": [{"role": "user"}], "messages": [{"role": "user"}]}, "not both"),
        ({"prompt": 5}, "not int"),
        ({"prompt": b"x"}, "not bytes"),
        ({"prompt": {"role": "king", "content": "x"}}, "role"),
        ({"prompt": {"content": "x"}}, "role"),
        ({"prompt": {"text": 5}}, "prompt"),
        ({"messages": "x" * (LIMIT + 1)}, "1,001 bytes"),
        ({"messages": [7]}, "Message 0"),
        ({"messages": [{"role": "user"}, {"role": "user", "colour": 1}]}, "Message 1.colour"),
        ({"agent": ""}, "agent"),
        ({"agent": "a" * 201}, "agent"),
        ({"agent": 5}, "agent"),
        ({"model": ""}, "model"),
        ({"model": ["m"]}, "model"),
        ({"tier": "vip"}, "'interactive', 'batch' or 'background'"),
        ({"tier": 1}, "tier"),
        ({"options": "hot"}, "options"),
        ({"options": {1: 2}}, "options"),
        ({"options": {"stop": {1, 2}}}, "options"),
        ({"options": {"num_ctx": 8192}}, "GAELP_NUM_CTX"),
        *(
            ({"options": {name: 1}}, f"{name} is an argument of its own")
            for name in ("messages", "model", "format", "tools", "think", "stall_timeout_s")
        ),
        ({"format": "xml"}, "format"),
        ({"tools": "search"}, "tools"),
        ({"tools": [1]}, "tools.0"),
        ({"images": ["no base64!"]}, "images.0"),
        ({"images": [5]}, "images.0"),
        ({"think": "hmm"}, "think"),
        ({"deadline_s": "soon"}, "deadline_s"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": 366 * 86_400}, "deadline_s"),
        ({"stall_timeout_s": -1}, "stall_timeout_s"),
        ({"stall_timeout_s": 86_400}, "stall_timeout_s"),
        ({"queue_ttl_s": 0}, "queue_ttl_s"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"tenant": 3}, "tenant"),
        ({"metadata": [1]}, "metadata"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_malformed_call_is_refused_in_one_sentence(asked, says):
    needs_prompt = not asked.keys() & {"prompt", "messages"} and asked
    text = complaint(**({"prompt": "hello"} if needs_prompt else {}), **asked)
    assert says in text
    assert_one_sentence(text)


@pytest.mark.parametrize("priority", [0, 11, -1, 10**20, True, False, 5.0, 5.5, NAN, "5", "high", [5], {}])
def test_a_priority_is_a_whole_number_from_1_to_10(priority):
    text = complaint(prompt="x", priority=priority)
    assert text.startswith("priority: ")
    assert_one_sentence(text)


@pytest.mark.parametrize("priority", range(1, 11))
def test_the_priorities_1_to_10_are_taken(priority):
    assert parse(prompt="x", priority=priority).priority == priority


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "place",
    [
        lambda number: {"deadline_s": number},
        lambda number: {"stall_timeout_s": number},
        lambda number: {"queue_ttl_s": number},
        lambda number: {"options": {"temperature": number}},
        lambda number: {"options": {"stop": [1, {"deep": [number]}]}},
        lambda number: {"format": {"type": "object", "minimum": number}},
        lambda number: {"tools": [{"function": {"x": [number]}}]},
        lambda number: {"metadata": {"a": {"b": (number,)}}},
    ],
)
def test_no_number_may_be_infinite_or_nan_however_deep(place, number):
    text = complaint(prompt="x", **place(number))
    assert "finite" in text or "less than" in text or "greater than" in text
    assert_one_sentence(text)


@pytest.mark.parametrize("number", [NAN, INF])
def test_the_arguments_of_a_tool_call_may_not_be_infinite_or_nan(number):
    assert_one_sentence(complaint(messages=calls_with({"a": [number]})))


def test_the_arguments_of_a_tool_call_must_be_json():
    assert_one_sentence(complaint(messages=calls_with({"a": object()})))


def test_half_a_surrogate_pair_is_refused_as_a_prompt():
    assert_one_sentence(complaint(prompt="broken \ud83d"))
    assert_one_sentence(complaint(messages=[{"role": "user", "content": "broken \ud83d"}]))


def nested(depth):
    outer = inner = {}
    for _ in range(depth):
        inner["a"] = {}
        inner = inner["a"]
    return outer


@pytest.mark.parametrize("field", ["options", "metadata", "format"])
def test_endless_nesting_is_refused_in_a_sentence_a_person_can_read(field):
    for depth in (500, 5000):
        text = complaint(prompt="x", **{field: nested(depth)})
        assert_one_sentence(text)
        assert len(text) < 500


def test_a_prompt_may_have_exactly_the_limit_in_bytes():
    assert parse(prompt="x" * LIMIT).size_bytes == LIMIT
    text = complaint(prompt="x" * (LIMIT + 1))
    assert "1,001" in text
    assert "1,000" in text
    assert "GAELP_MAX_PROMPT_BYTES" in text
    assert_one_sentence(text)


def test_the_size_is_counted_in_bytes_not_in_characters():
    assert parse(prompt="\u20ac" * 333).size_bytes == 999
    assert "1,002" in complaint(prompt="\u20ac" * 334)


def test_all_messages_and_images_count_towards_the_size():
    half = "x" * (LIMIT // 2)
    assert parse(messages=[{"role": "user", "content": half}] * 2).size_bytes == LIMIT
    complaint(messages=[{"role": "user", "content": half}] * 2 + [{"role": "user", "content": "x"}])
    assert parse(prompt="x", images=[PIXEL]).size_bytes == 1 + len(PIXEL)
    complaint(prompt="x" * LIMIT, images=[PIXEL])


@pytest.mark.parametrize(
    "extra",
    [
        {"messages": [{"role": "assistant", "content": "x", "thinking": "x" * 10 * LIMIT}]},
        {"messages": calls_with({"a": "x" * 10 * LIMIT})},
        {"prompt": "x", "metadata": {"a": "x" * 10 * LIMIT}},
        {"prompt": "x", "tools": [{"a": "x" * 10 * LIMIT}]},
    ],
    ids=["thinking", "tool calls", "metadata", "tools"],
)
def test_nothing_large_gets_in_beside_the_prompt(extra):
    complaint(**extra)


def test_images_need_a_prompt():
    text = complaint(messages=[{"role": "user", "content": "x"}], images=[PIXEL])
    assert "mages belong to a prompt" in text
    assert parse(prompt="x", images=[PIXEL]).input == (Message(role="user", content="x", images=(PIXEL,)),)


@pytest.mark.parametrize(
    ("prompt", "content"),
    [("hi", "hi"), ({"text": "hi", "stop_reason": "stop", "usage": {}}, "hi")],
)
def test_a_text_and_a_result_of_the_step_before_are_a_prompt(prompt, content):
    asked = parse(prompt=prompt)
    assert asked.prompt == content
    assert asked.input == (Message(role="user", content=content),)


@pytest.mark.parametrize(
    "prompt",
    [
        {"role": "user", "content": "hi"},
        Message(role="user", content="hi"),
        [{"role": "user", "content": "hi"}],
        [Message(role="user", content="hi")],
        ({"role": "user", "content": "hi"},),
    ],
)
def test_a_message_or_a_list_of_them_as_prompt_becomes_messages(prompt):
    asked = parse(prompt=prompt)
    assert asked.prompt is None
    assert asked.input == asked.messages == (Message(role="user", content="hi"),)


def test_what_was_given_as_none_counts_as_not_given():
    asked = parse(prompt="x", model=None, tier=None, agent=None, options=None, deadline_s=None)
    assert asked == parse(prompt="x")
    assert (asked.agent, asked.tier, asked.priority) == ("chat", Tier.INTERACTIVE, 5)


def test_an_invocation_cannot_be_changed():
    with pytest.raises(ValidationError):
        parse(prompt="x").priority = 9


def test_a_summary_and_an_error_show_no_prompt():
    asked = parse(prompt="SECRET", model="m", tier="batch", priority=7, metadata={"k": "SECRET"})
    assert asked.summary() == "agent=chat model=m tier=batch priority=7"


# -- properties

secrets = st.text(
    st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=8, max_size=30
)  # no sentence of ours has such letters
WRONG = {
    "prompt": lambda secret: {"prompt": {"text": [secret]}},
    "role": lambda secret: {"messages": [{"role": secret, "content": "x"}]},
    "content": lambda secret: {"messages": [{"role": "user", "content": [secret]}]},
    "message": lambda secret: {"messages": [[secret]]},
    "image": lambda secret: {"prompt": "x", "images": [secret]},
    "message image": lambda secret: {"messages": [{"role": "user", "images": [secret]}]},
    "tier": lambda secret: {"prompt": "x", "tier": secret},
    "priority": lambda secret: {"prompt": "x", "priority": secret},
    "deadline": lambda secret: {"prompt": "x", "deadline_s": secret},
    "think": lambda secret: {"prompt": "x", "think": secret},
    "format": lambda secret: {"prompt": "x", "format": secret},
    "tools": lambda secret: {"prompt": "x", "tools": secret},
    "tool": lambda secret: {"prompt": "x", "tools": [secret * 50]},
    "options": lambda secret: {"prompt": "x", "options": secret},
    "metadata": lambda secret: {"prompt": "x", "metadata": [secret]},
    "agent": lambda secret: {"prompt": "x", "agent": secret * 50},
    "model": lambda secret: {"prompt": "x", "model": [secret]},
    "tenant": lambda secret: {"prompt": "x", "tenant": {secret}},
    "both": lambda secret: {"prompt": secret, "messages": [{"role": "user", "content": secret}]},
    "too long": lambda secret: {"prompt": secret * 200},
    "other fault": lambda secret: {"prompt": secret, "priority": 0},
}


@pytest.mark.parametrize("wrong", WRONG)
@given(secret=secrets)
def test_an_error_never_repeats_what_was_given(wrong, secret):
    text = complaint(**WRONG[wrong](secret))
    assert secret not in text
    assert_one_sentence(text)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
said = texts.filter(lambda text: text.strip())
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, json_values, max_size=3)
names = st.text("abcXYZ0189._-:/", min_size=1, max_size=30)
invocations = st.fixed_dictionaries(
    {},
    optional={
        "agent": names,
        "model": names,
        "tier": st.sampled_from(Tier),
        "priority": st.integers(1, 10),
        "options": st.dictionaries(names.map("opt_".__add__), json_values, max_size=3),
        "format": st.just("json") | objects,
        "tools": st.lists(objects, max_size=2),
        "think": st.booleans() | st.sampled_from(["low", "medium", "high", "max"]),
        "deadline_s": st.floats(0.001, 1e6),
        "stall_timeout_s": st.floats(0, 1e4),
        "queue_ttl_s": st.floats(0.001, 1e6),
        "idempotency_key": names,
        "tenant": names,
        "metadata": objects,
    },
).flatmap(
    lambda rest: st.one_of(
        st.fixed_dictionaries({"prompt": said}),
        st.fixed_dictionaries({"prompt": said, "images": st.lists(st.just(PIXEL), min_size=1, max_size=2)}),
        st.fixed_dictionaries(
            {
                "messages": st.lists(
                    st.fixed_dictionaries(
                        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": said},
                        optional={"thinking": texts, "images": st.just([PIXEL]), "tool_name": names},
                    ),
                    min_size=1,
                    max_size=3,
                )
            }
        ),
    ).map(lambda asks: asks | rest)
)


@given(invocations)
def test_what_travels_is_json_and_comes_back_the_same(given_arguments):
    asked = Invocation.parse(given_arguments, max_prompt_bytes=10**6)
    wire = asked.wire()
    carried = json.loads(json.dumps(wire, allow_nan=False))
    assert carried == wire
    assert Invocation.parse(carried, max_prompt_bytes=10**6) == asked
    assert None not in wire.values()


def test_messages_that_say_nothing_are_an_empty_prompt():
    assert "empty" in complaint(messages=[{"role": "user", "content": " \n"}])
