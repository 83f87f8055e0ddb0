"""Agents: one form for every input, the system prompt first and once, streams that close."""

import asyncio
import subprocess
import sys
from contextlib import aclosing

import pytest

from gaelp_tasks.agents import (
    BaseAgent,
    ChatAgent,
    CodingAgent,
    ReasoningAgent,
    ResearchAgent,
    register_agent,
)
from gaelp_tasks.clients import BaseOllamaClient, ChatResponse, ScriptedClient
from gaelp_tasks.errors import InvalidInvocation, NodeFailed
from gaelp_tasks.models import Message
from gaelp_tasks.registry import AGENTS, READERS, agent_class
from gaelp_tasks.settings import Settings

SHIPPED = [ChatAgent, CodingAgent, ReasoningAgent, ResearchAgent]


def conversation_of(client):
    return [(message.role, message.content) for message in client.asked[-1].messages]


@pytest.mark.parametrize(
    "given",
    [
        "Hi",
        Message(role="user", content="Hi"),
        {"role": "user", "content": "Hi"},
        [{"role": "user", "content": "Hi"}],
        [Message(role="user", content="Hi")],
        {"text": "Hi", "stop_reason": "stop"},
        ["Hi"],
        iter([Message(role="user", content="Hi")]),
    ],
    ids=["text", "message", "mapping", "list", "messages", "result", "texts", "iterator"],
)
async def test_every_form_of_input_reaches_the_client_as_the_same_conversation(given):
    client = ScriptedClient()
    await ChatAgent(client).get_full_response(given)
    assert conversation_of(client) == [("user", "Hi")]


@pytest.mark.parametrize("given", [7, None, b"Hi", [7]])
async def test_an_input_of_another_form_is_refused(given):
    with pytest.raises(InvalidInvocation):
        await ChatAgent(ScriptedClient()).get_full_response(given)


async def test_the_system_prompt_comes_first_and_once():
    client = ScriptedClient()
    agent = ChatAgent(client, system_prompt="Be brief.")
    await agent.get_full_response("Hi")
    assert conversation_of(client) == [("system", "Be brief."), ("user", "Hi")]
    await agent.get_full_response(client.asked[-1].messages)
    assert conversation_of(client) == [("system", "Be brief."), ("user", "Hi")]


async def test_a_conversation_that_opens_with_a_system_message_keeps_it():
    client = ScriptedClient()
    messages = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}]
    await CodingAgent(client).get_full_response(messages)
    assert conversation_of(client) == [("system", "Mine."), ("user", "Hi")]


@pytest.mark.parametrize("agent", SHIPPED)
async def test_each_shipped_agent_sends_its_own_system_prompt(agent):
    client = ScriptedClient()
    await agent(client).get_full_response("Hi")
    opening = [("system", agent.system_prompt)] if agent.system_prompt else []
    assert conversation_of(client) == [*opening, ("user", "Hi")]


def test_the_shipped_agents_differ_in_their_prompts_and_only_chat_has_none():
    prompts = [agent.system_prompt for agent in SHIPPED]
    assert prompts[0] is None
    assert len(set(prompts)) == len(SHIPPED)
    assert all(len(prompt) > 300 for prompt in prompts[1:])


@pytest.mark.parametrize(("name", "agent"), list(zip(AGENTS.built_in, SHIPPED, strict=True)))
def test_each_shipped_agent_is_known_by_its_name(name, agent):
    assert agent_class(name, Settings()) is agent


@pytest.mark.parametrize("name", AGENTS.built_in)
async def test_a_producer_knows_which_built_in_agents_take_documents(name):
    client = ScriptedClient(["It says so [1]."])
    asked = agent_class(name, Settings())(client).get_response("Hi", documents=["The document."])
    if name in READERS:
        assert (await asked).data["citations"]
    else:
        with pytest.raises(InvalidInvocation, match="documents"):
            await asked


async def test_run_streams_chunks_and_passes_options_on():
    client = ScriptedClient(["a", "b"])
    tool = {"type": "function", "function": {"name": "f"}}
    async with aclosing(
        ChatAgent(client).run("Hi", temperature=0.2, format="json", tools=[tool], think=True)
    ) as stream:
        chunks = [chunk async for chunk in stream]
    assert [chunk.content for chunk in chunks] == ["a", "b", ""]
    assert chunks[-1].done
    asked = client.asked[0]
    assert (asked.options, asked.format, asked.tools, asked.think) == (
        {"temperature": 0.2},
        "json",
        [tool],
        True,
    )


async def test_the_full_response_is_the_text_without_the_thinking():
    client = ScriptedClient([ChatResponse(thinking="hm"), "a", "b"])
    assert await ChatAgent(client).get_full_response("Hi") == "ab"


def test_run_sync_gives_the_same_text_and_options_from_synchronous_code():
    client = ScriptedClient(["a", "b"])
    assert ChatAgent(client).run_sync("Hi", seed=1) == "ab"
    assert client.asked[0].options == {"seed": 1}


def test_run_sync_raises_what_the_client_raises():
    with pytest.raises(NodeFailed, match="boom"):
        ChatAgent(ScriptedClient(["a", NodeFailed("boom")])).run_sync("Hi")


async def test_run_sync_works_while_a_loop_runs_in_the_calling_thread():
    assert ChatAgent(ScriptedClient(["a"])).run_sync("Hi") == "a"


async def test_leaving_an_agents_stream_leaves_the_clients_stream():
    client = ScriptedClient(["a", asyncio.Event()])
    async with aclosing(ChatAgent(client).run("Hi")) as stream:
        await anext(stream)
    assert client.closed.is_set()


async def test_cancelling_a_full_response_leaves_the_clients_stream():
    reached, never = asyncio.Event(), asyncio.Event()

    async def hang():
        reached.set()
        await never.wait()

    client = ScriptedClient(["a", hang])
    task = asyncio.create_task(ChatAgent(client).get_full_response("Hi"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.closed.is_set()


async def test_closing_an_agent_closes_its_client():
    client = ScriptedClient()
    async with ChatAgent(client) as agent:
        assert not client.is_closed
        assert await agent.get_full_response("Hi") == "Hello, world"
    assert client.is_closed


# --- the seed's extension examples ------------------------------------------------------------------


class CustomAgent(BaseAgent):
    system_prompt = "Speak loudly."

    async def run(self, messages, **options):
        messages = [{"role": "user", "content": f"{messages}!"}]
        async for chunk in super().run(messages, **options):
            yield chunk.model_copy(update={"content": chunk.content.upper()})


class CustomClient(BaseOllamaClient):
    async def generate_embedding(self, text: str):
        return [float(len(text)), 1.0]

    async def chat(self, messages, **options):
        for word in messages[-1].content.split():
            yield ChatResponse(content=f"{word} ")


async def test_the_seeds_custom_agent_changes_what_goes_in_and_what_comes_out():
    client = ScriptedClient(["a", "b"])
    assert await CustomAgent(client).get_full_response("Hi") == "AB"
    assert conversation_of(client) == [("system", "Speak loudly."), ("user", "Hi!")]


async def test_leaving_the_seeds_custom_agent_leaves_the_clients_stream():
    client = ScriptedClient(["a", asyncio.Event()])
    async with aclosing(CustomAgent(client).run("Hi")) as stream:
        await anext(stream)
    await client.closed.wait()


async def test_the_seeds_custom_client_needs_nothing_but_its_two_methods():
    async with CustomClient() as client:
        assert await ChatAgent(client).get_full_response("one two", temperature=1) == "one two "
        assert await client.embed(["a", "bcd"], model="x") == await client.embed(("a", "bcd"), model="x")
        assert (await client.embed(["a", "bcd"])).vectors == ((1.0, 1.0), (3.0, 1.0))
        assert await client.load() == 0.0
        assert (await client.models(), await client.loaded(), await client.version()) == ((), (), "")
        assert (await client.resolve(None), await client.resolve("m", embeds=True)) == ("", "m")


def test_run_sync_works_on_the_seeds_custom_client():
    assert ChatAgent(CustomClient()).run_sync("one two") == "one two "


async def test_process_is_the_step_between_the_ready_conversation_and_the_answer():
    class Twice(BaseAgent):
        system_prompt = "S"

        async def process(self, messages, **options):
            for _ in range(2):
                async with aclosing(super().process(messages, **options)) as answer:
                    async for chunk in answer:
                        if not chunk.done:
                            yield chunk

    client = ScriptedClient(["a"], ["b"])
    assert await Twice(client).get_full_response("Hi") == "ab"
    assert [asked.messages[0].content for asked in client.asked] == ["S", "S"]


def test_a_registered_agent_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(AGENTS, "registered", {})
    registered = register_agent("shouting")(CustomAgent)
    assert registered is CustomAgent
    assert agent_class("shouting", Settings()) is CustomAgent


def test_agents_and_clients_can_be_imported_without_aiohttp_which_is_asked_for_by_name():
    script = """
import sys
sys.modules["aiohttp"] = None
from gaelp_tasks.agents import ChatAgent
from gaelp_tasks.clients import ScriptedClient
print(ChatAgent(ScriptedClient(["fine"])).run_sync("Hi"))
try:
    from gaelp_tasks.clients import LocalOllamaClient
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "fine",
        "LocalOllamaClient needs aiohttp: install gaelp-tasks[client].",
    ]
