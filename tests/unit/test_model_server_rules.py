"""The model server's decisions that need no engine: what requests mean, and who waits."""

import asyncio
import math
import signal

import pytest

from gaelp_tasks.demo.model_server.check import check_engine, explain
from gaelp_tasks.demo.model_server.conversation import (
    asks_for_call,
    call_schema,
    read_call,
    turns,
    without_oldest,
)
from gaelp_tasks.demo.model_server.faults import ApiError, ServerBusy
from gaelp_tasks.demo.model_server.gguf_info import NotGguf, read_gguf
from gaelp_tasks.demo.model_server.registry import full_name
from gaelp_tasks.demo.model_server.seats import Seats
from gaelp_tasks.demo.model_server.wire import ChatRequest, GenerateRequest, Message, Tool, seconds

WEATHER = Tool.parse(
    b'{"function": {"name": "weather", "description": "of a city", "parameters": {"type": "object",'
    b' "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}}, "required": ["city"]}}}'
)


def message(role, content, **fields):
    return Message(role=role, content=content, **fields)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0, 0),
        (90, 90),
        (1.5, 1.5),
        (-1, math.inf),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        (".5s", 0.5),
        ("0", 0),
        ("-1m", math.inf),
        (None, None),
    ],
)
def test_keep_alive_is_seconds_or_go_units(given, meant):
    assert seconds(given) == meant


@pytest.mark.parametrize("given", ["-1", "5", "", "5 m", "m", "1h?", True, [1]])
def test_a_keep_alive_without_meaning_is_refused(given):
    with pytest.raises(ValueError, match=r"must be|is no duration"):
        seconds(given)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "invalid model: Field required"),
        (b'{"model": 3}', "invalid model"),
        (b'{"model": "m", "options": {"temperature": "hot"}}', "invalid options.temperature"),
        (b'{"model": "m", "options": {"num_predict": 1.5}}', "invalid options.num_predict"),
        (b'{"model": "m", "keep_alive": "5"}', 'invalid keep_alive: "5" is no duration'),
        (b'{"model": "m", "messages": [{"role": "boss"}]}', "invalid messages.0.role"),
        (b'{"model": "m", "format": "yaml"}', "invalid format"),
    ],
)
def test_a_bad_request_is_400_and_names_the_field(body, sentence):
    with pytest.raises(ApiError) as caught:
        ChatRequest.parse(body)
    assert caught.value.status == 400
    assert sentence in str(caught.value)


def test_unknown_fields_and_options_of_the_load_are_ignored():
    asked = ChatRequest.parse(
        b'{"model": "m", "new": 1, "options": {"num_ctx": 9, "num_gpu": 1, "top_k": 3}}'
    )
    assert asked.engine_options() == {"top_k": 3}


def test_options_get_the_engines_names():
    asked = ChatRequest.parse(b'{"model": "m", "options": {"num_predict": 3, "stop": "x", "seed": 1}}')
    assert asked.engine_options() == {"n_predict": 3, "stop": ["x"], "seed": 1}


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ({"think": True}, "does not support thinking"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "does not support insert"),
        ({"template": "x"}, '"template"'),
        ({"context": [1]}, '"context"'),
        ({"raw": True, "format": "json"}, '"format" with "raw"'),
    ],
)
def test_parts_of_ollamas_api_that_are_missing_are_refused(field, sentence):
    asked = GenerateRequest(model="m", prompt="p", **field)
    with pytest.raises(ApiError, match=sentence) as caught:
        asked.refuse_what_is_missing(images=False)
    assert caught.value.status == 400


@pytest.mark.parametrize("think", [None, False])
def test_no_thinking_is_accepted(think):
    GenerateRequest(model="m", prompt="p", think=think).refuse_what_is_missing(images=False)


@pytest.mark.parametrize(
    ("name", "full"),
    [("x", "x:latest"), ("x:1b", "x:1b"), ("host:80/x", "host:80/x:latest"), ("a/x:t", "a/x:t")],
)
def test_a_name_without_a_tag_is_the_latest(name, full):
    assert full_name(name) == full


def test_tools_are_told_in_the_system_turn():
    plain = turns([message("system", "Be brief."), message("user", "Rain?")], [WEATHER])
    assert [turn["role"] for turn in plain] == ["system", "user"]
    assert plain[0]["content"].startswith("Be brief.\n\n")
    assert 'weather(city: string, unit: "C" | "F"): of a city' in plain[0]["content"]


def test_after_a_tools_answer_the_model_writes_plainly():
    messages = [message("user", "Rain?"), message("tool", "no", tool_name="weather")]
    assert not asks_for_call(messages, [WEATHER])
    plain = turns(messages, [WEATHER])
    assert [turn["role"] for turn in plain] == ["user", "user"]
    assert "The function weather returned: no" in plain[1]["content"]


def test_earlier_calls_are_shown_to_the_model():
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    said = Message.model_validate({"role": "assistant", "content": "", "tool_calls": [call]})
    assert turns([said], []) == [
        {"role": "assistant", "content": '{"name": "weather", "arguments": {"city": "Rome"}}'}
    ]


def test_a_call_can_hold_nothing_but_the_named_arguments():
    (only,) = call_schema([WEATHER])["anyOf"]
    assert only["properties"]["name"] == {"const": "weather"}
    assert only["properties"]["arguments"]["additionalProperties"] is False
    assert only["properties"]["arguments"]["required"] == ["city"]


def test_a_call_that_was_cut_short_is_no_call():
    assert read_call('{"name": "weather", "argum') is None
    assert read_call('{"name": "weather", "arguments": {"city": "Rome"}}') == {
        "function": {"name": "weather", "arguments": {"city": "Rome"}}
    }


def test_the_oldest_turns_go_first_and_system_and_last_stay():
    conversation = [
        {"role": role, "content": str(at)} for at, role in enumerate(["system", "user", "assistant", "user"])
    ]
    shorter = without_oldest(conversation)
    assert [turn["content"] for turn in shorter] == ["0", "2", "3"]
    shortest = without_oldest(shorter)
    assert [turn["content"] for turn in shortest] == ["0", "3"]
    assert without_oldest(shortest) is None


def test_the_beginning_of_an_answer_stays_with_its_question():
    conversation = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    shorter = without_oldest(without_oldest(conversation))
    assert shorter == conversation[2:]
    assert without_oldest(shorter) is None


async def test_seats_are_given_in_order_and_a_waiter_that_leaves_is_forgotten():
    seats = Seats(slots=1, max_waiting=2)
    order = []

    async def sit(name, done):
        async with seats.take():
            order.append(name)
            await done.wait()

    done = asyncio.Event()
    first, second, third = (asyncio.create_task(sit(name, done)) for name in "abc")
    await asyncio.sleep(0)
    assert (seats.busy, seats.waiting) == (1, 2)
    with pytest.raises(ServerBusy) as caught:
        async with seats.take():
            pass
    assert caught.value.status == 503
    second.cancel()
    await asyncio.wait([second])
    assert (seats.busy, seats.waiting) == (1, 1)
    done.set()
    await asyncio.gather(first, third)
    assert order == ["a", "c"]
    assert (seats.busy, seats.waiting) == (0, 0)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a model at all", b"GGUF\x09\x00\x00\x00" + b"\x00" * 16]
)
def test_a_file_that_is_no_model_is_told_so(content, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(NotGguf, match="is not a GGUF model file"):
        read_gguf(file)


@pytest.mark.engine
def test_the_engine_loads_here():
    assert check_engine() is None


@pytest.mark.parametrize(
    ("returncode", "stderr", "sentence"),
    [
        (1, "ImportError: libgomp.so.1: cannot open shared object file", "apt-get install libgomp1"),
        (1, "ModuleNotFoundError: No module named 'xllamacpp'", "pip install 'gaelp-tasks[demo]'"),
        (-signal.SIGILL, "", "lacks AVX2"),
        (1, "Traceback\nImportError: musl", "ImportError: musl"),
        (-signal.SIGSEGV, "", "status -11"),
    ],
)
def test_each_reason_why_the_engine_cannot_load_has_its_sentence(returncode, stderr, sentence):
    told = explain(returncode, stderr)
    assert sentence in told
    assert "\n" not in told
