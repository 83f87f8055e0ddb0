"""Modes: named ways to answer, those that ask the model more than once included."""

from contextlib import aclosing

import pytest
from pydantic import BaseModel

from gaelp_tasks.agents import BaseAgent, ChatAgent, Mode, ReasoningAgent
from gaelp_tasks.clients import ChatResponse, ScriptedClient
from gaelp_tasks.errors import AnswerUnfit, InvalidInvocation
from gaelp_tasks.models import ToolCall, Usage
from gaelp_tasks.registry import AGENTS, BUILT_IN_MODES, agent_class
from gaelp_tasks.settings import Settings
from support.fakes import assert_one_sentence

CALL = ToolCall.model_validate({"function": {"name": "weather", "arguments": {}}})
SCHEMA = {"type": "function", "function": {"name": "weather"}}


class Verdict(BaseModel):
    right: bool


def system_of(client):
    return client.asked[0].messages[0].content


@pytest.mark.parametrize("name", AGENTS.built_in)
def test_a_producer_knows_the_modes_of_every_built_in_agent(name):
    assert tuple(agent_class(name, Settings()).modes) == BUILT_IN_MODES.get(name, ())


async def test_a_modes_prompt_is_the_system_prompt_and_none_is_the_usual_one():
    prompts = {}
    for mode in (None, "brief", "step_by_step", "critique"):
        client = ScriptedClient(["x"])
        await ReasoningAgent(client).get_response("Hi", mode=mode)
        prompts[mode] = system_of(client)
        assert [message.role for message in client.asked[0].messages] == ["system", "user"]
    assert prompts[None] == prompts["step_by_step"] == prompts["critique"] == ReasoningAgent.system_prompt
    assert prompts["brief"] != prompts[None]


async def test_a_conversation_keeps_its_own_system_message_in_every_mode():
    client = ScriptedClient(["x"])
    messages = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}]
    await ReasoningAgent(client).get_response(messages, mode="critique")
    assert [[one.content for one in asked.messages if one.role == "system"] for asked in client.asked] == [
        ["Mine."]
    ] * 3


async def test_a_critique_is_a_draft_its_review_and_the_answer():
    usage = Usage(prompt_tokens=10, completion_tokens=2)
    client = ScriptedClient(["A dra", "ft."], ["It is wrong."], ["The answer."], usage=usage)
    async with aclosing(ReasoningAgent(client).run("Why?", mode="critique", temperature=0)) as stream:
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.content for chunk in chunks) == "The answer."
    assert "".join(chunk.thinking for chunk in chunks) == "A draft.\n\nIt is wrong.\n\n"
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert sum((chunk.usage for chunk in chunks if chunk.usage), Usage()) == Usage(
        prompt_tokens=30, completion_tokens=6
    )
    last = client.asked[2].messages
    assert [one.role for one in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [one.content for one in last[2::2]] == ["A draft.", "It is wrong."]
    assert [asked.options for asked in client.asked] == [{"temperature": 0}] * 3


async def test_the_form_is_for_the_answer_and_the_tools_for_the_draft():
    client = ScriptedClient(["draft"], ["review"], ['{"right": true}'])
    verdict = await ReasoningAgent(client).get_parsed("Hi", Verdict, mode="critique", tools=[SCHEMA])
    assert verdict == Verdict(right=True)
    assert [(bool(asked.tools), bool(asked.format)) for asked in client.asked] == [
        (True, False),
        (False, False),
        (False, True),
    ]


async def test_a_draft_that_calls_what_the_caller_answers_is_the_answer():
    client = ScriptedClient(["Wait. ", ChatResponse(tool_calls=(CALL,))])
    answer = await ReasoningAgent(client).get_response("Hi", mode="critique", tools=[SCHEMA])
    assert answer.tool_calls == (CALL,)
    assert len(client.asked) == 1


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        (ReasoningAgent, "ReasoningAgent has no mode 'bold'; there are: brief, step_by_step, critique."),
        (ChatAgent, "ChatAgent has no mode 'bold'; it has none."),
    ],
)
async def test_an_unknown_mode_is_refused_with_those_there_are(agent, told):
    client = ScriptedClient()
    with pytest.raises(InvalidInvocation, match=told):
        await agent(client).get_response("Hi", mode="bold")
    assert client.asked == []


async def test_an_agent_of_ones_own_may_have_modes():
    class Poet(BaseAgent):
        system_prompt = "Prose."
        modes = {  # noqa: RUF012  as a user would write it
            "sonnet": Mode(system_prompt="A sonnet."),
            "twice": Mode(steps=("Better!",)),
        }

    client = ScriptedClient(["one"], ["two"], ["three"])
    assert await Poet(client).get_full_response("Hi", mode="sonnet") == "one"
    assert await Poet(client).get_full_response("Hi", mode="twice") == "three"
    assert [asked.messages[0].content for asked in client.asked] == ["A sonnet.", "Prose.", "Prose."]


async def test_documents_are_refused_by_an_agent_that_reads_none():
    with pytest.raises(InvalidInvocation, match="ChatAgent takes none; research does") as caught:
        await ChatAgent(ScriptedClient()).get_response("Hi", documents=["a"])
    assert_one_sentence(str(caught.value))


# --- the whole answer


async def test_a_response_tells_everything_about_an_answer():
    script = [ChatResponse(thinking="hm"), "a", ChatResponse(content="b", node="http://n", model="m")]
    answer = await ChatAgent(ScriptedClient(script)).get_response("one two", num_predict=1)
    assert (answer.text, answer.thinking, answer.stop_reason) == ("ab", "hm", "length")
    assert (answer.model, answer.node, answer.tool_calls, answer.data) == ("scripted", "http://n", (), {})
    assert answer.usage == Usage(prompt_tokens=2, completion_tokens=1)


async def test_an_answer_is_parsed_into_the_class_to_whose_schema_the_model_was_held():
    client = ScriptedClient(['{"rig', 'ht": false}'])
    assert await ChatAgent(client).get_parsed("Hi", Verdict, model="scripted") == Verdict(right=False)
    assert client.asked[0].format == Verdict.model_json_schema()


async def test_an_answer_that_does_not_fit_its_class_is_an_error_that_says_so():
    with pytest.raises(AnswerUnfit, match="no Verdict"):
        await ChatAgent(ScriptedClient(['{"right": '])).get_parsed("Hi", Verdict)
