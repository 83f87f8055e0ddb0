"""One form for every input, and the system prompt first, once."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models import Message, ToolCall, as_messages, with_system
from support.fakes import assert_one_sentence
from support.names import case

roles = st.sampled_from(["system", "user", "assistant", "tool"])

messages = st.builds(Message, role=roles, content=st.text(max_size=20))
HI = Message(role="user", content="hi")
WAV = base64.b64encode(b"RIFF\x24\0\0\0WAVEfmt ").decode()
MP3 = base64.b64encode(b"ID3\x04\0\0\0\0\0\0\0\0\0\0").decode()


class Foreign(BaseModel):
    """A message class of another library."""

    role: str
    content: str
    images: list[str] | None = None


@pytest.mark.parametrize(
    "given_as",
    [
        "hi",
        HI,
        {"role": "user", "content": "hi"},
        [HI],
        (HI,),
        [{"role": "user", "content": "hi"}],
        {"text": "hi"},
        ["hi"],
        ("hi",),
        [{"text": "hi", "stop_reason": "stop"}],
        iter([HI]),
        (item for item in ["hi"]),
        Foreign(role="user", content="hi"),
        [Foreign(role="user", content="hi")],
    ],
    ids=case,
)
def test_every_input_becomes_the_same_tuple_of_messages(given_as):
    assert as_messages(given_as) == (HI,)


@given(st.lists(messages, max_size=4))
def test_messages_and_their_mappings_mix_and_keep_their_order(conversation):
    mixed = [item if at % 2 else item.model_dump() for at, item in enumerate(conversation)]
    assert as_messages(mixed) == tuple(conversation)
    assert as_messages(as_messages(mixed)) == tuple(conversation)


def test_a_message_with_a_text_and_a_role_is_a_message_not_a_result():
    with pytest.raises(InvalidInvocation, match="text"):
        as_messages({"role": "user", "text": "hi"})


@pytest.mark.parametrize("given_as", [5, None, b"hi", bytearray(b"hi"), 3.5, {HI.role}], ids=repr)
def test_anything_else_is_refused_by_its_type(given_as):
    with pytest.raises(InvalidInvocation, match=type(given_as).__name__) as caught:
        as_messages(given_as)
    assert str(caught.value).endswith(".")


def test_the_place_of_a_bad_message_is_named():
    with pytest.raises(InvalidInvocation, match=r"^Message 1\.role: "):
        as_messages([HI, {"role": "king"}])


def test_a_tool_call_is_taken_in_ollamas_shape():
    [message] = as_messages(
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    )
    assert message.tool_calls == (
        ToolCall.model_validate({"function": {"name": "add", "arguments": {"a": 1}}}),
    )


@given(st.lists(messages, max_size=4).map(tuple), st.text(min_size=1, max_size=20))
def test_the_system_prompt_is_first_and_never_added_twice(conversation, prompt):
    opened = with_system(conversation, prompt)
    assert opened[0].role == "system"
    assert with_system(opened, prompt) == opened
    if conversation and conversation[0].role == "system":
        assert opened == conversation
    else:
        assert opened == (Message(role="system", content=prompt), *conversation)


@pytest.mark.parametrize("prompt", [None, ""])
def test_without_a_system_prompt_nothing_is_added(prompt):
    assert with_system((HI,), prompt) == (HI,)
    assert with_system((), prompt) == ()


def test_forms_of_message_mix_in_one_conversation():
    mixed = [
        {"role": "system", "content": "S"},
        "a",
        Foreign(role="assistant", content="b"),
        Message(role="user", content="c", images=(WAV,)),
        {"text": "d", "id": "1"},
    ]
    assert [(one.role, one.content) for one in as_messages(mixed)] == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("user", "d"),
    ]


@pytest.mark.parametrize("name", ["audio", "audios", "input_audio"])
def test_sound_goes_where_ollama_takes_it(name):
    [message] = as_messages({"role": "user", "content": "What do you hear?", "images": [MP3], name: [WAV]})
    assert message.images == (MP3, WAV)
    assert as_messages({"role": "user", name: WAV})[0].images == (WAV,)


@pytest.mark.parametrize("sound", [MP3, "no base64!", "", 5, [5], {"data": WAV}, [WAV, MP3]], ids=str)
def test_sound_that_ollama_would_take_for_a_picture_is_refused_by_one_sentence(sound):
    with pytest.raises(InvalidInvocation, match="Message 0: ") as caught:
        as_messages({"role": "user", "content": "x", "audio": sound})
    assert_one_sentence(str(caught.value))
