"""What agents and parsers make of an answer: `data` in the result."""

import asyncio

import pytest
from pydantic import BaseModel

from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.celery_app import app
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import AnswerUnfit, InvalidInvocation
from gaelp_tasks.models import Document, Invocation, Message, ToolCall
from gaelp_tasks.registry import AGENTS, PARSERS, TOOLS
from gaelp_tasks.retries import Done, Failed
from gaelp_tasks.streams import Piece
from gaelp_tasks.tasks.invoke import invoke_agent
from support.fakes import FakeBroker, Workbench, assert_one_sentence
from support.names import case

CALL = ToolCall.model_validate({"function": {"name": "add", "arguments": {"a": 1, "b": 2}}})

SCHEMA = {"type": "function", "function": {"name": "add"}}


class Town(BaseModel):
    name: str


def add(a: int, b: int) -> int:
    return a + b


def shout(text):
    return {"loud": Town(name=text.upper())}


def refuse(text):
    raise KeyError(text)


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    monkeypatch.setattr(AGENTS, "registered", {})
    monkeypatch.setattr(TOOLS, "registered", {"add": add})
    monkeypatch.setattr(PARSERS, "registered", {"shout": shout, "refuse": refuse})


@pytest.fixture
async def bench():
    """`bench(*scripts)` is a process whose client plays these scripts."""
    benches = []

    def make(*scripts, **settings):
        benches.append(
            Workbench(asyncio.get_running_loop(), FakeBroker(), ScriptedClient(*scripts), **settings)
        )
        return benches[-1]

    yield make
    for made in benches:
        await made.redis.aclose()


async def result_of(made, **asked):
    outcome = await made.walk(made.run(**asked))
    assert isinstance(outcome, Done), outcome
    return outcome.result


async def test_what_an_agent_says_about_its_answer_is_in_the_result(bench, monkeypatch):
    class Telling(BaseAgent):
        async def process(self, messages, **options):
            yield ChatResponse(content="a", data={"mood": "good", "page": 1})
            yield ChatResponse(content="b", data={"page": 2}, done=True)

    monkeypatch.setitem(AGENTS.registered, "telling", Telling)
    assert (await result_of(bench(), agent="telling")).data == {"mood": "good", "page": 2}


async def test_the_code_of_a_coding_agent_is_in_the_result(bench):
    result = await result_of(bench(["```py\nx\n```"]), agent="coding")
    assert result.data == {"code": [{"language": "py", "text": "x"}]}


async def test_an_answer_that_was_cut_by_length_has_its_data_too(bench):
    result = await result_of(bench(["```py\n", "x", "y"]), agent="coding", options={"num_predict": 2})
    assert (result.stop_reason, result.data["code"][0]["text"]) == ("length", "x")


async def test_documents_reach_the_research_agent_and_citations_come_back(bench):
    made = bench(["It does [1]."])
    result = await result_of(
        made, agent="research", documents=["The cat sleeps.", {"text": "b", "title": "B"}]
    )
    assert result.data["citations"][0]["text"] == "The cat sleeps."
    assert "[2] B\nb" in made.at.client.asked[0].messages[-1].content


async def test_a_critique_streams_its_draft_as_thinking(bench):
    made = bench(["draft"], ["review"], ["answer"])
    result = await result_of(made, agent="reasoning", mode="critique")
    assert result.text == made.text() == "answer"
    thought = "".join(event.thinking for event in made.events() if isinstance(event, Piece))
    assert thought.split() == ["draft", "review"]


async def test_a_registered_tool_runs_in_the_worker(bench):
    made = bench([ChatResponse(tool_calls=(CALL,))], ["It is 3."])
    result = await result_of(made, tools=["add"])
    assert (result.text, result.tool_calls) == ("It is 3.", ())
    assert result.data["tool_runs"] == [{"name": "add", "arguments": {"a": 1, "b": 2}, "result": 3}]


async def test_the_call_of_a_mere_schema_comes_back_and_is_not_parsed(bench):
    result = await result_of(bench([ChatResponse(tool_calls=(CALL,))]), tools=[SCHEMA], parser="refuse")
    assert result.tool_calls == (CALL.model_dump(mode="json"),)
    assert result.data == {}


async def test_a_tool_named_in_the_settings_is_found(bench, tmp_path, monkeypatch):
    (tmp_path / "tools_of_a_test.py").write_text("def twice(a: int) -> int:\n    return 2 * a\n")
    monkeypatch.syspath_prepend(tmp_path)
    call = ToolCall.model_validate({"function": {"name": "double", "arguments": {"a": 4}}})
    made = bench([ChatResponse(tool_calls=(call,))], ["8"], tools={"double": "tools_of_a_test:twice"})
    result = await result_of(made, tools=["double"])
    assert result.data["tool_runs"][0]["result"] == 8


# --- parsed


@pytest.mark.parametrize(
    ("asked", "text", "data"),
    [
        ({"format": "json"}, '{"a": 1}', {"parsed": {"a": 1}}),
        ({"format": {"type": "array"}}, "```json\n[1]\n```", {"parsed": [1]}),
        ({"format": Town}, '{"name": "Ulm"}', {"parsed": {"name": "Ulm"}}),
        ({"format": "json"}, "no JSON", {}),
        ({}, '{"a": 1}', {}),
        ({"parser": "json"}, 'Sure: {"a": 1}', {"parsed": {"a": 1}}),
        ({"parser": "list"}, "- a\n- b", {"parsed": ["a", "b"]}),
        ({"parser": "shout"}, "ulm", {"parsed": {"loud": {"name": "ULM"}}}),
        ({"parser": "shout", "format": "json"}, "{}", {"parsed": {"loud": {"name": "{}"}}}),
    ],
)
async def test_what_a_format_or_a_parser_makes_of_the_text(bench, asked, text, data):
    result = await result_of(bench([text[:3], text[3:]]), **asked)
    assert (result.text, result.data) == (text, data)


async def test_a_class_reaches_the_model_as_its_schema(bench):
    made = bench(['{"name": "Ulm"}'])
    await result_of(made, format=Town)
    assert made.at.client.asked[0].format == Town.model_json_schema()


@pytest.mark.parametrize("parser", ["refuse", "json"])
async def test_a_parser_that_refuses_fails_the_run_by_name_and_the_text_stays_in_the_stream(bench, parser):
    made = bench(["SECRET"])
    outcome = await made.walk(made.run(parser=parser))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, AnswerUnfit)
    assert parser in str(outcome.error)
    assert "SECRET" not in str(outcome.error)
    assert made.text() == "SECRET"
    assert made.end()["error"] == "AnswerUnfit"


async def test_a_parser_whose_value_is_no_json_is_one_that_refuses(bench, monkeypatch):
    monkeypatch.setitem(PARSERS.registered, "odd", lambda _: object())
    made = bench(["x"])
    outcome = await made.walk(made.run(parser="odd"))
    assert isinstance(outcome.error, AnswerUnfit)


async def test_nobody_expects_a_cut_answer_to_fit(bench):
    result = await result_of(bench(['{"a": ', "1}"]), parser="json", options={"num_predict": 1})
    assert (result.stop_reason, result.data) == ("length", {})


@pytest.mark.parametrize(
    "asked", [{"tools": ["sub"]}, {"parser": "none"}, {"agent": "reasoning", "mode": "no"}]
)
async def test_a_name_that_only_the_sender_knows_fails_without_a_model_call(bench, asked):
    made = bench(["x"])
    outcome = await made.walk(made.run(**asked))
    assert isinstance(outcome.error, InvalidInvocation)
    assert made.at.client.asked == []


# --- at the caller


def test_a_signature_carries_json_for_what_was_given_as_objects():
    made = invoke_agent.s(
        Message(role="user", content="Hi"),
        format=Town,
        agent="research",
        documents=[Document(text="a"), "b"],
        priority=7,
    )
    [prompt] = made.args
    assert (prompt["role"], prompt["content"]) == ("user", "Hi")
    assert made.kwargs["format"] == Town.model_json_schema()
    assert [one if isinstance(one, str) else one["text"] for one in made.kwargs["documents"]] == ["a", "b"]
    assert made.kwargs["priority"] == 7
    accepted = invoke_agent.accept(made.args, made.kwargs, None)
    assert isinstance(accepted, Invocation)
    assert app.signature(dict(made)).kwargs == made.kwargs


def test_a_signature_leaves_what_has_no_json_to_the_refusal_at_the_call():
    with pytest.raises(InvalidInvocation):
        invoke_agent.s(object()).apply_async()


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ({"tools": add}, {"tools": ("add",)}),
        ({"tools": [SCHEMA, add]}, {"tools": (SCHEMA, "add")}),
        ({"tools": SCHEMA}, {"tools": (SCHEMA,)}),
        ({"documents": "a"}, {"documents": (Document(text="a"),)}),
        ({"documents": Document(text="a")}, {"documents": (Document(text="a"),)}),
        ({"documents": (one for one in ["a", "b"])}, {"documents": (Document(text="a"), Document(text="b"))}),
        ({"format": Town}, {"format": Town.model_json_schema()}),
    ],
    ids=case,
)
def test_objects_of_python_are_taken_for_what_travels(given, accepted):
    parsed = Invocation.parse({"prompt": "x"} | given, max_prompt_bytes=1000)
    assert {name: getattr(parsed, name) for name in accepted} == accepted


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"format": 5}, "format: give"),
        ({"format": "yaml"}, "format: give"),
        ({"format": int}, "format: give"),
        ({"tools": "add"}, "tools: give a list"),
        ({"documents": 5}, "documents.0: give texts"),
        ({"documents": ["a", {"title": "x"}]}, "documents.1.text: give texts"),
    ],
    ids=case,
)
def test_what_cannot_travel_is_refused_by_one_sentence(given, told):
    with pytest.raises(InvalidInvocation, match=told) as caught:
        Invocation.parse({"prompt": "x"} | given, max_prompt_bytes=1000)
    assert_one_sentence(str(caught.value))
