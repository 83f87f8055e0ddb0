"""Turns with tools: what is run, what is handed back, and where it ends."""

import asyncio
from contextlib import aclosing

import pytest
from pydantic import BaseModel

from gaelp_tasks.agents import BaseAgent, ChatAgent, CodingAgent, ReasoningAgent
from gaelp_tasks.clients import BaseOllamaClient, ChatResponse, ScriptedClient
from gaelp_tasks.errors import InvalidInvocation, SettingsError
from gaelp_tasks.models import ToolCall, Usage
from gaelp_tasks.registry import TOOLS
from gaelp_tasks.settings import load_settings
from gaelp_tasks.tools import Tool

SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def call(name, /, **arguments):
    return ToolCall.model_validate({"function": {"name": name, "arguments": arguments}, "id": f"id-{name}"})


def calls(*asked):
    return ChatResponse(tool_calls=asked)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(TOOLS, "registered", {"add": add})


def told(client, at=-1):
    return [(message.role, message.content) for message in client.asked[at].messages]


async def test_a_registered_tool_is_run_and_the_model_answers_with_its_result():
    client = ScriptedClient([calls(call("add", a=1, b=2))], ["It is ", "3."])
    answer = await ChatAgent(client).get_response("1 + 2?", tools=["add"])
    assert answer.text == "It is 3."
    assert answer.tool_calls == ()
    assert answer.data == {"tool_runs": [{"name": "add", "arguments": {"a": 1, "b": 2}, "result": 3}]}
    assert [asked.tools for asked in client.asked] == [[Tool.of(add, "add").schema]] * 2
    question, asked, result = client.asked[1].messages
    assert question.content == "1 + 2?"
    assert asked.tool_calls == (call("add", a=1, b=2),)
    assert (result.role, result.content, result.tool_name, result.tool_call_id) == (
        "tool",
        "3",
        "add",
        "id-add",
    )


async def test_the_usage_of_every_turn_counts_and_only_the_last_chunk_is_done():
    client = ScriptedClient(
        [calls(call("add", a=1, b=2))], ["3"], usage=Usage(prompt_tokens=5, completion_tokens=2)
    )
    async with aclosing(ChatAgent(client).run("Hi", tools=["add"])) as stream:
        chunks = [chunk async for chunk in stream]
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert sum((chunk.usage for chunk in chunks if chunk.usage), Usage()).prompt_tokens == 10


async def test_text_of_every_turn_streams_and_turns_do_not_run_together():
    client = ScriptedClient(["Let me see.", calls(call("add", a=1, b=2))], ["3"])
    assert await ChatAgent(client).get_full_response("Hi", tools=["add"]) == "Let me see.\n\n3"


async def test_several_calls_of_one_turn_are_run_in_their_order():
    client = ScriptedClient([calls(call("add", a=1, b=2)), calls(call("add", a=3, b=4))], ["done"])
    answer = await ChatAgent(client).get_response("Hi", tools=["add"])
    assert [run["result"] for run in answer.data["tool_runs"]] == [3, 7]
    assert [role for role, _ in told(client)] == ["user", "assistant", "tool", "tool"]


async def test_bad_arguments_and_unknown_names_go_back_to_the_model():
    client = ScriptedClient([calls(call("add", a="x", b=1), call("rm", path="/"))], ["sorry"])
    answer = await ChatAgent(client).get_response("Hi", tools=["add"])
    assert answer.text == "sorry"
    assert "a: Input should be a valid integer" in told(client)[2][1]
    assert told(client)[3][1] == "Error: There is no tool called 'rm'; there are: add."
    assert [("error" in run) for run in answer.data["tool_runs"]] == [True, True]


async def test_only_what_the_caller_named_can_be_called():
    TOOLS.registered["secret"] = lambda: 1 / 0
    client = ScriptedClient([calls(call("secret"))], ["no"])
    answer = await ChatAgent(client).get_response("Hi", tools=["add"])
    assert "no tool called 'secret'" in answer.data["tool_runs"][0]["error"]


async def test_after_the_bound_the_model_must_answer_without_tools():
    class Bounded(ChatAgent):
        tool_rounds = 2

    client = ScriptedClient(*[[calls(call("add", a=1, b=1))]] * 2, ["enough"])
    answer = await Bounded(client).get_response("Hi", tools=["add"])
    assert answer.text == "enough"
    assert len(answer.data["tool_runs"]) == 2
    assert [bool(asked.tools) for asked in client.asked] == [True, True, False]


async def test_mere_schemas_are_passed_on_and_their_calls_come_back():
    client = ScriptedClient([calls(call("weather"))])
    answer = await ChatAgent(client).get_response("Hi", tools=[SCHEMA])
    assert answer.tool_calls == (call("weather"),)
    assert answer.data == {}
    assert client.asked[0].tools == [SCHEMA]


async def test_a_turn_with_a_call_for_the_caller_is_handed_back_whole():
    client = ScriptedClient(
        [calls(call("add", a=1, b=2))], ["And ", calls(call("add", a=3, b=4), call("weather"))], ["never"]
    )
    answer = await ChatAgent(client).get_response("Hi", tools=["add", SCHEMA])
    assert answer.tool_calls == (call("add", a=3, b=4), call("weather"))
    assert [run["result"] for run in answer.data["tool_runs"]] == [3]
    assert len(client.asked) == 2


async def test_with_a_format_the_turns_are_thinking_and_the_answer_is_one_more_call():
    class Sum(BaseModel):
        sum: int

    client = ScriptedClient(["Hm. ", calls(call("add", a=1, b=2))], ["I have it."], ['{"sum": 3}'])
    answer = await ChatAgent(client).get_response("Hi", tools=["add"], format=Sum)
    assert answer.text == '{"sum": 3}'
    assert answer.thinking == "Hm. I have it."
    assert [(bool(asked.tools), asked.format) for asked in client.asked] == [
        (True, None),
        (True, None),
        (False, Sum.model_json_schema()),
    ]
    assert answer.data["tool_runs"][0]["result"] == 3


async def test_functions_and_tools_can_be_given_themselves():
    def double(a: int) -> int:
        return 2 * a

    client = ScriptedClient([calls(call("double", a=2), call("add", a=1, b=1))], ["fine"])
    answer = await ChatAgent(client).get_response("Hi", tools=[double, Tool.of(add, "add")])
    assert [run["result"] for run in answer.data["tool_runs"]] == [4, 2]


@pytest.mark.parametrize("agent", [ChatAgent, CodingAgent, ReasoningAgent])
async def test_every_agent_can_use_tools(agent):
    client = ScriptedClient([calls(call("add", a=1, b=2))], ["```\n3\n```"])
    answer = await agent(client).get_response("Hi", tools=["add"])
    assert answer.data["tool_runs"][0]["result"] == 3
    assert ("code" in answer.data) is (agent is CodingAgent)


async def test_an_unknown_name_is_refused_before_the_model_is_asked():
    client = ScriptedClient()
    with pytest.raises(InvalidInvocation, match="no tool 'sub'; there are: add"):
        await ChatAgent(client).get_response("Hi", tools=["sub"])
    assert client.asked == []


async def test_a_setting_that_names_no_tool_is_a_wrong_setting(monkeypatch):
    monkeypatch.setenv("GAELP_TOOLS", '{"join": "os.path:join"}')
    load_settings.cache_clear()
    with pytest.raises(SettingsError, match=r"GAELP_TOOLS: The tool 'join'"):
        await ChatAgent(ScriptedClient()).get_response("Hi", tools=["join"])


async def test_leaving_while_a_tool_runs_leaves_everything():
    reached, left = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    client = ScriptedClient([calls(call("hang"))])
    task = asyncio.create_task(ChatAgent(client).get_response("Hi", tools=[hang]))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left.is_set()


async def test_a_client_that_never_says_done_can_have_tools():
    class Plain(BaseOllamaClient):
        async def generate_embedding(self, text):
            return [1.0]

        async def chat(self, messages, **options):
            if messages[-1].role == "tool":
                yield ChatResponse(content=f"It is {messages[-1].content}.")
            else:
                yield ChatResponse(tool_calls=(call("add", a=1, b=2),))

    answer = await ChatAgent(Plain()).get_response("Hi", tools=["add"])
    assert answer.text == "It is 3."
    assert answer.data["tool_runs"][0]["result"] == 3


async def test_an_agent_of_ones_own_has_tools_through_process():
    class Polite(BaseAgent):
        async def process(self, messages, **options):
            async with aclosing(super().process(messages, **options)) as answer:
                async for chunk in answer:
                    yield chunk
            yield ChatResponse(content=" Thank you.")

    client = ScriptedClient([calls(call("add", a=1, b=2))], ["3."])
    assert await Polite(client).get_full_response("Hi", tools=["add"]) == "3. Thank you."


async def test_half_a_character_of_a_model_breaks_neither_turns_nor_data():
    client = ScriptedClient(["half \ud83d", calls(call("add", a=1, b=2))], ["```\n\ud83d\n```"])
    answer = await CodingAgent(client).get_response("Hi", tools=["add"])
    assert client.asked[1].messages[2].content == "half ?"
    assert answer.data["code"] == [{"language": "", "text": "?"}]
    client = ScriptedClient(["half \ud83d"])
    await ReasoningAgent(client).get_response("Hi", mode="critique")
    assert client.asked[1].messages[2].content == "half ?"
