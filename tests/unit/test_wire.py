"""What nodes say, as data: chunks, documents, refusals, whatever they are made of."""

import json
import math
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gaelp_tasks.clients import ChatResponse, ModelInfo, wire
from gaelp_tasks.clients.refusals import refusal, retry_after_s
from gaelp_tasks.errors import GaelpError, NodeError, NodeFailed, StreamTruncated, Verdict
from gaelp_tasks.models import FunctionCall, ToolCall, Usage

NODE = "http://node:11434"
unhurried = settings(deadline=None)  # a busy machine is no failure
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def line(**fields):
    return json.dumps(fields).encode() + b"\n"


def token(text):
    return line(model="m", created_at="2026-01-01T00:00:00Z", message={"role": "assistant", "content": text})


LAST = line(
    model="m",
    message={"role": "assistant", "content": ""},
    done=True,
    done_reason="stop",
    prompt_eval_count=3,
    eval_count=2,
    load_duration=1_500_000_000,
    a_field_of_tomorrow={"x": 1},
)


def decoded(pieces):
    """What comes out of these pieces of a stream: chunks, and the kind of error at the end."""
    decoder = wire.ChatDecoder(NODE)
    chunks = []
    try:
        for piece in pieces:
            chunks.extend(decoder.feed(piece))
        chunks.extend(decoder.end())
    except NodeError as error:
        return chunks, type(error)
    return chunks, None


def cut_at(data, places):
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


# --- the stream -------------------------------------------------------------------------------------


def test_tokens_come_out_in_order_and_the_last_carries_usage():
    chunks, error = decoded([token("Hel") + token("lo") + LAST])
    assert error is None
    assert [chunk.content for chunk in chunks] == ["Hel", "lo", ""]
    assert [chunk.usage for chunk in chunks[:2]] == [None, None]
    assert chunks[-1] == ChatResponse(
        done=True,
        done_reason="stop",
        usage=Usage(prompt_tokens=3, completion_tokens=2),
        model="m",
        node=NODE,
        load_s=1.5,
    )


STREAMS = st.sampled_from(
    [
        token("Grüße 🌍") + token("") + LAST,
        token("a") + b"\n\r\n" + token("b") + LAST.strip(),
        token("a") + line(error="out of memory") + token("never"),
        token("a") + LAST + token("after the end"),
        token("a") + b'{"message": {"content": "cut',
        token("a") + b"garbage\n" + LAST,
        b"",
    ]
)


@unhurried
@given(stream=STREAMS, places=st.lists(st.integers(0, 400)))
def test_cutting_the_bytes_anywhere_gives_the_same_chunks(stream, places):
    assert decoded(cut_at(stream, places)) == decoded([stream])


def test_each_byte_on_its_own_gives_the_same_chunks():
    stream = token("Grüße 🌍") + LAST
    assert decoded([stream[i : i + 1] for i in range(len(stream))]) == decoded([stream])


def test_chunks_before_an_error_in_the_same_bytes_are_handed_out_first():
    assert decoded([token("a") + line(error="boom")]) == (
        [ChatResponse(content="a", model="m", node=NODE)],
        NodeFailed,
    )


def test_an_error_without_its_newline_is_still_an_error():
    assert decoded([token("a") + line(error="boom").strip()])[1] is NodeFailed


def test_nothing_at_all_is_a_truncated_answer():
    assert decoded([]) == ([], StreamTruncated)


def test_a_line_may_be_as_long_as_its_bound_and_no_longer():
    room = wire.MAX_LINE_BYTES - len(token("").strip())
    longest = token("x" * room)
    assert len(longest.strip()) == wire.MAX_LINE_BYTES
    [chunk], _ = decoded([longest])
    assert len(chunk.content) == room
    assert decoded([token("x" * (room + 1))]) == ([], NodeFailed)


def test_a_stream_may_be_longer_than_a_line():
    piece = token("x" * (wire.MAX_LINE_BYTES // 2))
    chunks, error = decoded([piece] * 3 + [LAST])
    assert (len(chunks), error) == (4, None)


def test_blank_lines_are_skipped():
    chunks, error = decoded([b"\n" + token("a") + b"\r\n  \n\n" + LAST + b"\n"])
    assert ([chunk.content for chunk in chunks], error) == (["a", ""], None)


def test_thinking_and_tool_calls_are_read():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": None}, "index": 2}}
    message = {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call]}
    [chunk], _ = decoded([line(message=message, done=False)])
    assert chunk.thinking == "hm"
    function = FunctionCall(name="f", arguments={"x": None}, index=2)
    assert chunk.tool_calls == (ToolCall(id="c1", function=function),)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (7, 7),
        (-1, 0),
        (None, 0),
        ("many", 0),
        (True, 0),
        (3.9, 3),
        (10**30, wire.MAX_COUNT),
        ([1], 0),
        (math.inf, wire.MAX_COUNT),
    ],
)
def test_a_number_of_a_node_is_brought_into_range(told, kept):
    text = json.dumps({"done": True, "eval_count": told}).replace("Infinity", "1e999").encode()
    [chunk], error = decoded([text])
    assert error is None
    assert chunk.usage.completion_tokens == kept


@unhurried
@given(document=JSON)
@example(document={"message": {"content": None, "tool_calls": None}, "done": None})
@example(document={"done": True, "load_duration": math.nan})
@example(document={"done": True, "done_reason": 5})
@example(document={"message": {"tool_calls": [7]}})
@example(document={"error": None})
def test_whatever_a_line_says_it_is_a_chunk_or_an_error_of_ours(document):
    chunks, error = decoded([json.dumps(document).encode() + b"\n"])
    assert error is None or issubclass(error, NodeError)
    for chunk in chunks:
        chunk.content.encode()  # a lone surrogate would fail here, and in Redis
        json.dumps(chunk.model_dump(mode="json"), allow_nan=False)


@unhurried
@given(
    message=st.fixed_dictionaries({}, optional={"content": JSON, "thinking": JSON, "tool_calls": JSON}),
    rest=JSON,
)
def test_whatever_a_message_holds_it_is_a_chunk_or_an_error_of_ours(message, rest):
    fields = {
        "message": message,
        "done": True,
        "eval_count": rest,
        "load_duration": rest,
        "done_reason": rest,
    }
    chunks, error = decoded([json.dumps(fields).encode()])
    assert error in {None, NodeFailed, StreamTruncated}
    for chunk in chunks:
        json.dumps(chunk.model_dump(mode="json"), allow_nan=False)


def test_a_long_error_of_a_node_is_cut_to_one_short_line():
    decoder = wire.ChatDecoder(NODE)
    with pytest.raises(NodeFailed) as caught:
        list(decoder.feed(line(error="line one\nline two " + "x" * 10_000)))
    assert "line one line two" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:3b", "llama3.2:3b"),
        ("host:5000/me/m", "host:5000/me/m:latest"),
        ("hf.co/me/m:Q4", "hf.co/me/m:Q4"),
    ],
)
def test_a_model_without_a_tag_is_the_latest(name, listed):
    assert wire.canonical(name) == listed


# --- documents --------------------------------------------------------------------------------------


def test_a_list_of_models_is_read_with_or_without_the_newer_fields():
    old = {"name": "a:latest", "size": 5, "digest": "d", "details": {"family": "llama"}}
    new = {"name": "b:latest", "capabilities": ["embedding"], "details": None, "size": -1}
    assert wire.models(json.dumps({"models": [old, new]}).encode(), NODE) == (
        ModelInfo(name="a:latest", size_bytes=5, digest="d", family="llama"),
        ModelInfo(name="b:latest", capabilities=("embedding",)),
    )


@pytest.mark.parametrize("answer", [b'{"models": null}', b"{}"])
def test_no_models_are_an_empty_list(answer):
    assert wire.models(answer, NODE) == ()
    assert wire.running(answer, NODE) == ()


@pytest.mark.parametrize(
    ("info", "embeds"),
    [
        (ModelInfo(name="m", capabilities=("embedding",)), True),
        (ModelInfo(name="m", capabilities=("completion", "tools"), family="bert"), False),
        (ModelInfo(name="m", family="nomic-bert"), True),
        (ModelInfo(name="m", family="llama"), False),
        (ModelInfo(name="m"), False),
    ],
)
def test_capabilities_tell_an_embedding_model_and_else_its_family(info, embeds):
    assert wire.is_embedding(info) is embeds


def test_an_embedding_with_a_number_that_is_none_is_refused():
    with pytest.raises(NodeFailed):
        wire.embeddings(b'{"embeddings": [[1.0, 1e999]]}', ["a"], NODE)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("1e999", None),
        ("-5", 0.0),
        ("1.5", 1.5),
        ("99999999", 3600.0),
        (format_datetime(datetime.fromtimestamp(1_000_030, UTC), usegmt=True), 30.0),
        ("Mon, 12 Jan 1970 13:47:10", 30.0),
        (format_datetime(datetime.fromtimestamp(0, UTC), usegmt=True), 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_beyond_an_hour(header, wait_s):
    assert retry_after_s(header, now_unix=1_000_000) == wait_s


@unhurried
@given(header=st.text(max_size=40))
def test_no_retry_after_header_breaks_us(header):
    wait_s = retry_after_s(header, now_unix=1_000_000)
    assert wait_s is None or 0 <= wait_s <= 3600


@unhurried
@given(status=st.integers(300, 999), answer=st.binary(max_size=60))
def test_every_status_is_an_error_with_a_verdict(status, answer):
    error = refusal(status, answer, node=NODE, path="/api/chat", model="m", wait_s=None)
    assert isinstance(error.verdict, Verdict)
    assert str(error).startswith(NODE)


def test_the_errors_we_raise_can_be_rebuilt_from_their_sentence():
    """Celery does so on the caller's side."""
    for error in (
        *decoded_errors(),
        *(refusal(s, b"", node=NODE, path="/", model="m", wait_s=1) for s in (404, 503)),
    ):
        again = type(error)(str(error))
        assert isinstance(again, GaelpError)
        assert str(again) == str(error)


def decoded_errors():
    for stream in (b"x\n", line(error="e"), b""):
        decoder = wire.ChatDecoder(NODE)
        try:
            list(decoder.feed(stream))
            list(decoder.end())
        except NodeError as error:
            yield error
