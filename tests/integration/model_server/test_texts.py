"""Texts that the model server writes: streams, seeds, schemas, tools, prompts that do not fit."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.chats import ENDING, chat, parts, text_of
from support.model_server import CHAT_MODEL

pytestmark = pytest.mark.engine

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of some days",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]},
    },
}


def test_a_streamed_chat_is_ndjson_and_says_what_the_whole_one_says(server):
    *pieces, last = parts(server.post("/api/chat", chat(stream=True), stream=True))
    whole = server.post("/api/chat", chat()).json()
    assert len(pieces) == 12
    assert all(piece["message"]["role"] == "assistant" and not piece["done"] for piece in pieces)
    assert "".join(text_of(piece) for piece in pieces) == text_of(whole)
    for answer in (last, whole):
        assert answer["done"]
        assert answer["done_reason"] == "length"
        assert answer["eval_count"] == 12
        assert answer["prompt_eval_count"] > 0
        assert answer["total_duration"] >= answer["eval_duration"] > 0
        assert answer["model"] == CHAT_MODEL


def test_the_stream_is_the_default(server):
    body = chat()
    del body["stream"]
    assert len(parts(server.post("/api/chat", body))) == 13


def test_the_text_is_words_of_whole_characters(server):
    text = text_of(server.post("/api/chat", chat(options={"num_predict": 400, "seed": 5})).json())
    assert "\ufffd" not in text
    assert {word.strip(".!?") for word in text.split()} & {"the", "café", "naïve", "river", "bird"}
    assert "." in text or "!" in text or "?" in text


def test_the_same_seed_gives_the_same_text_alone_and_in_parallel(server):
    body = chat(options={"num_predict": 40, "seed": 3})
    alone = text_of(server.post("/api/chat", body).json())
    with ThreadPoolExecutor(4) as pool:
        together = [answer.json() for answer in pool.map(lambda _: server.post("/api/chat", body), range(8))]
    assert {text_of(answer) for answer in together} == {alone}


def test_the_text_depends_on_the_first_word_of_the_prompt(server):
    ask = chat("river stone", options={"num_predict": 60, "temperature": 0})
    other = chat("garden stone", options={"num_predict": 60, "temperature": 0})
    assert text_of(server.post("/api/chat", ask).json()) != text_of(server.post("/api/chat", other).json())


def test_a_cut_text_goes_on_where_it_was_cut(server):
    def generate(prompt, tokens):
        body = {"model": CHAT_MODEL, "prompt": prompt, "raw": True, "stream": False}
        return server.post(
            "/api/generate", {**body, "options": {"temperature": 0, "num_predict": tokens}}
        ).json()

    whole = generate("The quiet", 30)["response"]
    first = generate("The quiet", 11)["response"]
    assert whole == first + generate(f"The quiet{first}", 19)["response"]


def test_a_model_that_ends_by_itself_says_stop(server):
    answer = server.post("/api/chat", chat(model=ENDING, options={"num_predict": 1500, "seed": 2})).json()
    assert answer["done_reason"] == "stop"
    assert text_of(answer)[-1] in ".!?"


def test_a_stop_word_ends_the_text_before_it(server):
    everything = text_of(server.post("/api/chat", chat()).json())
    word = everything.split()[3]
    answer = server.post("/api/chat", chat(options={"num_predict": 12, "seed": 1, "stop": [word]})).json()
    assert answer["done_reason"] == "stop"
    assert text_of(answer) == everything[: everything.index(word)]


def test_a_json_schema_is_kept(server):
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "count": {"type": "integer"}},
        "required": ["mood", "count"],
    }
    answer = json.loads(text_of(server.post("/api/chat", chat(format=schema, options={})).json()))
    assert answer["mood"] in {"good", "bad"}
    assert isinstance(answer["count"], int)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "if": {}, "then": {}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"not": {"type": "string"}},
    ],
)
def test_a_schema_that_is_only_half_understood_still_gives_json(server, schema):
    json.loads(text_of(server.post("/api/chat", chat(format=schema, options={"seed": 4})).json()))


def test_a_tool_is_called_with_an_object(server):
    answer = server.post("/api/chat", chat(tools=[WEATHER], options={"seed": 1})).json()
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert isinstance(call["function"]["arguments"]["days"], int)
    assert text_of(answer) == ""


def test_a_streamed_tool_call_comes_in_one_piece(server):
    first, last = parts(server.post("/api/chat", chat(tools=[WEATHER], options={"seed": 1}, stream=True)))
    assert first["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert not first["done"]
    assert last["done"]


def test_generate_takes_a_system_prompt_and_raw_takes_none(server):
    def count(**fields):
        body = {
            "model": CHAT_MODEL,
            "prompt": "hello",
            "stream": False,
            "options": {"num_predict": 1},
            **fields,
        }
        return server.post("/api/generate", body).json()["prompt_eval_count"]

    assert count(raw=True) == len("hello")
    assert count(raw=True) < count() < count(system="Be brief.")


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_system(server):
    turns = [{"role": role, "content": "x" * 900} for role in ("system", "user", "assistant", "user")]
    answer = server.post("/api/chat", {**chat(), "messages": turns}).json()
    assert 1800 < answer["prompt_eval_count"] < 2048


@pytest.mark.parametrize("fields", [{}, {"truncate": False}])
def test_a_prompt_that_cannot_fit_is_400(server, fields):
    answer = server.post("/api/chat", chat("x" * 2100, **fields))
    assert answer.status_code == 400
    assert "shorten the prompt" in answer.json()["error"]
