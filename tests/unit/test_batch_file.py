"""Lines of a batch in two forms: what each asks for, and that no bad one harms another."""

import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.batch_file import BadLine, Defaults, Form, Line, Reader, numbered
from gaelp_tasks.models.invocation import Tier

MOST = 2000
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    "custom_id",
    "method",
    "url",
    "body",
    "prompt",
    "messages",
    "input",
    "tier",
    "model",
    "options",
    "tools",
)


def reader(**how):
    defaults = Defaults(**how)
    return Reader(defaults, most_bytes=MOST, max_prompt_bytes=MOST)


def read(told, number=1, **how):
    raw = told if isinstance(told, bytes) else json.dumps(told).encode()
    return reader(**how).read(number, raw)


def arguments(told, **how):
    line = read(told, **how)
    assert isinstance(line, Line), line
    return json.loads(line.arguments)


def openai(body, url="/v1/chat/completions", **more):
    return {"custom_id": "a", "method": "POST", "url": url, "body": body} | more


def why(told, **how):
    line = read(told, **how)
    assert isinstance(line, BadLine), line
    assert line.why.endswith(".")
    assert "\n" not in line.why
    return line.why


# --- ours ---


def test_a_line_of_ours_takes_the_arguments_of_an_invocation():
    line = read({"custom_id": "a", "prompt": "Hi", "agent": "coding", "options": {"seed": 1}, "priority": 8})
    assert (line.custom_id, line.form, line.embeds) == ("a", Form.OWN, False)
    assert json.loads(line.arguments) == {
        "prompt": "Hi",
        "agent": "coding",
        "options": {"seed": 1},
        "priority": 8,
        "tier": "batch",
    }


def test_without_a_custom_id_the_number_of_the_line_is_its_id():
    assert read({"prompt": "Hi"}, number=17).custom_id == "17"


def test_a_line_with_an_input_is_embedded():
    line = read({"custom_id": "a", "input": ["x", "y"]})
    assert line.embeds
    assert json.loads(line.arguments)["input"] == ["x", "y"]


def test_what_a_line_does_not_say_the_batch_says():
    asked = arguments({"prompt": "Hi"}, model="m", agent="coding", tier=Tier.BACKGROUND)
    assert (asked["model"], asked["agent"], asked["tier"]) == ("m", "coding", "background")
    asked = arguments({"prompt": "Hi", "model": "own", "agent": "chat"}, model="m", agent="coding")
    assert (asked["model"], asked["agent"]) == ("own", "chat")


@pytest.mark.parametrize(
    ("of_line", "of_batch", "counts"),
    [
        ("interactive", Tier.BATCH, "batch"),
        ("background", Tier.BATCH, "background"),
        ("batch", Tier.BACKGROUND, "background"),
    ],
)
def test_of_two_tiers_the_lower_one_counts(of_line, of_batch, counts):
    assert arguments({"prompt": "Hi", "tier": of_line}, tier=of_batch)["tier"] == counts


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (b"{not json", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "no JSON object"),
        (b'"a"', "no JSON object"),
        (b"1" * 1900, "no JSON object"),
        (b"[" * 1900, "nested too deeply"),
        ({"prompt": "Hi", "colour": 1}, "colour"),
        ({"prompt": " "}, "empty"),
        ({}, "empty"),
        ({"prompt": "Hi", "messages": []}, "either prompt or messages"),
        ({"prompt": "Hi", "tier": "soon"}, "tier"),
        ({"prompt": "Hi", "tier": ["batch"]}, "tier"),
        ({"prompt": "Hi", "idempotency_key": "k"}, "idempotency_key"),
        ({"prompt": "Hi", "tenant": "t"}, "tenant"),
        ({"prompt": "Hi", "custom_id": 5}, "custom_id"),
        ({"prompt": "Hi", "custom_id": ""}, "custom_id"),
        ({"prompt": "Hi", "custom_id": "x" * 201}, "custom_id"),
        ({"prompt": "Hi", "custom_id": "\ud800"}, "half a character"),
        ({"prompt": "Hi", "custom_id": "a\0b"}, "NUL"),
        ({"prompt": "Hi", "input": "x"}, "prompt"),
        ({"prompt": "x" * 2001}, "2,000"),
        (b'{"prompt": "Hi", "options": {"temperature": NaN}}', "finite"),
        (b'{"prompt": "Hi", "priority": 1' + b"0" * 4400 + b"}", "digits"),
    ],
)
def test_a_bad_line_is_told_in_one_sentence(told, says):
    assert says in why(told)


def test_a_line_that_is_too_long_is_told_so():
    assert "longer than 2,000 bytes" in reader().read(1, None).why


def test_a_bad_line_keeps_its_custom_id_and_not_its_prompt():
    line = read({"custom_id": "a", "prompt": "SECRET", "colour": "SECRET"})
    assert line.custom_id == "a"
    assert "SECRET" not in line.why


def test_a_name_that_is_not_known_here_is_refused_where_somebody_checks():
    def check(invocation):
        raise InvalidInvocation(f"agent: there is no agent {invocation.agent}.")

    checked = Reader(Defaults(), most_bytes=MOST, max_prompt_bytes=MOST, check=check)
    assert "no agent chat" in checked.read(1, b'{"prompt": "Hi"}').why


# --- OpenAI's ---


def test_one_text_to_stop_at_is_a_list_of_one():
    assert json.loads(read(openai(CHAT | {"stop": "\n"})).arguments)["options"] == {"stop": ["\n"]}
    assert "stop" in read(openai(CHAT | {"stop": 5})).why


def test_a_chat_of_openai_becomes_an_invocation():
    body = CHAT | {
        "temperature": 0.5,
        "max_tokens": 20,
        "stop": ["x"],
        "seed": 3,
        "n": 1,
        "stream": False,
        "user": "u1",
        "reasoning_effort": "none",
        "response_format": {"type": "json_object"},
    }
    line = read(openai(body))
    assert (line.custom_id, line.form) == ("a", Form.CHAT)
    assert json.loads(line.arguments) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "agent": "chat",
        "model": "m",
        "tier": "batch",
        "priority": 5,
        "options": {"temperature": 0.5, "num_predict": 20, "stop": ["x"], "seed": 3},
        "format": "json",
        "think": False,
        "metadata": {"user": "u1"},
    }


def test_a_schema_is_taken_out_of_its_wrapping():
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert arguments(openai(CHAT | {"response_format": wanted}))["format"] == schema


def test_pictures_tool_calls_and_developers_become_what_ollama_takes():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD", "detail": "low"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    found = arguments(openai(CHAT | {"messages": messages}))["messages"]
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool"]
    assert (found[1]["content"], found[1]["images"]) == ("What is it?", ["QUJD"])
    assert found[2]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"}]


def test_tools_are_left_out_where_none_may_be_chosen():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert arguments(openai(CHAT | {"tools": [tool]}))["tools"] == [tool]
    assert "tools" not in arguments(openai(CHAT | {"tools": [tool], "tool_choice": "none"}))


def test_an_embedding_of_openai_becomes_one_of_ours():
    line = read(openai({"model": "m", "input": "x", "encoding_format": "float"}, "/v1/embeddings"))
    assert (line.form, line.embeds) == (Form.EMBEDDINGS, True)
    assert json.loads(line.arguments)["input"] == ["x"]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (openai(CHAT, method="GET"), "method"),
        (openai(CHAT, url="/v1/responses"), "url"),
        (openai(CHAT, url=["/v1/embeddings"]), "url"),
        (openai(CHAT, prompt="x"), "nothing else"),
        (openai("text"), "body"),
        (openai(CHAT, custom_id=None), "custom_id"),
        (openai({"messages": []}), "model"),
        (openai({"model": "m"}), "messages"),
        (openai(CHAT | {"messages": ["Hi"]}), "messages"),
        (openai(CHAT | {"messages": [{"role": "user", "content": "x", "name": "bob"}]}), "name"),
        (openai(CHAT | {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}), "part"),
        (
            openai(
                CHAT
                | {
                    "messages": [
                        {
                            "role": "user",
                            "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
                        }
                    ]
                }
            ),
            "picture",
        ),
        (openai(CHAT | {"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "tool call"),
        (openai(CHAT | {"n": 2}), "n: only 1"),
        (openai(CHAT | {"n": True}), "n: only 1"),
        (openai(CHAT | {"stream": True}), "stream: only false"),
        (openai(CHAT | {"tool_choice": "required"}), "tool_choice"),
        (openai(CHAT | {"logprobs": True}), "logprobs"),
        (openai(CHAT | {"audio": {}}), "The field audio"),
        (openai(CHAT | {"tell me a": "story"}), "A field of another name"),
        (openai(CHAT | {"reasoning_effort": ["low"]}), "reasoning_effort"),
        (openai(CHAT | {"response_format": {"type": "yaml"}}), "response_format"),
        (openai(CHAT | {"metadata": "x", "user": "u"}), "metadata"),
        (openai({"model": "m"}, "/v1/embeddings"), "input"),
        (openai({"model": "m", "input": "x", "encoding_format": "base64"}, "/v1/embeddings"), "only float"),
        (openai({"model": "m", "input": "x", "dimensions": 5}, "/v1/embeddings"), "dimensions"),
    ],
)
def test_what_no_node_can_do_is_refused_by_its_name(told, says):
    assert says in why(told)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), json_values, max_size=5))
@example({"custom_id": "a", "method": None, "url": None, "body": {}})
@example({"messages": [{"role": "user", "audio": 5}]})
def test_any_object_is_a_line_or_one_sentence(told):
    line = read(told)
    if isinstance(line, Line):
        json.loads(line.arguments)
    else:
        assert line.why.endswith(".")
        assert "\n" not in line.why


@given(st.binary(max_size=200))
def test_any_bytes_are_a_line_or_one_sentence(raw):
    assert isinstance(reader().read(1, raw), Line | BadLine)


# --- the file ---


@given(
    st.lists(
        st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=20
    ),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(1, 20),
)
def test_every_line_has_its_number_and_long_ones_are_told_apart(lines, ending, ends, most):
    file = ending.join(lines) + (ending if ends and lines else b"")
    found = dict(numbered(io.BytesIO(file), most_bytes=most))
    for number, line in enumerate(lines, 1):
        bare = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if len(bare) > most:
            assert found.pop(number) is None
        elif bare.strip():
            assert found.pop(number) == bare
    assert all(value is None for value in found.values()), "blanks without end are too long"


def test_a_byte_order_mark_and_blank_lines_are_nothing():
    file = io.BytesIO(b'\xef\xbb\xbf{"prompt": "Hi"}\r\n\r\n  \n{"prompt": "x"}')
    assert list(numbered(file, most_bytes=100)) == [(1, b'{"prompt": "Hi"}'), (4, b'{"prompt": "x"}')]


def test_a_line_without_end_takes_no_memory():
    class Endless(io.RawIOBase):
        asked = 0
        left = 50

        def readline(self, most=-1):
            Endless.asked = max(Endless.asked, most)
            Endless.left -= 1
            return b"x" * most if Endless.left else b"\n"

    assert next(numbered(Endless(), most_bytes=1000)) == (1, None)
    assert Endless.asked <= 64 * 1024
