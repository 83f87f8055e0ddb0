"""Only for mypy (make lint): what a user's type checker sees of the public surface. It is never run."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any, assert_type

from pydantic import BaseModel

from gaelp_tasks import InvocationHandle, errors, register_agent, register_parser, register_tool
from gaelp_tasks.agents import Answer, BaseAgent, ChatAgent
from gaelp_tasks.clients import (
    BaseOllamaClient,
    ChatResponse,
    DistributedOllamaClient,
    Embeddings,
    LocalOllamaClient,
    ScriptedClient,
    client_from_settings,
)
from gaelp_tasks.clients.routers import LeastLoadedRouter, NodeRouter
from gaelp_tasks.models import Message
from gaelp_tasks.settings import Settings, load_settings


def a_handle(handle: InvocationHandle) -> None:
    assert_type(handle.stream(timeout=1.0), Iterator[str])
    assert_type(handle.astream(), AsyncGenerator[str, None])
    for piece in handle.stream():
        assert_type(piece, str)
    handle.cancel()


def the_errors(error: errors.NodeBusy) -> None:
    assert_type(error.retry_after_s, float | None)
    assert_type(error.node, str)
    as_base: errors.GaelpError = errors.InvalidInvocation("The prompt is empty.")
    assert_type(as_base.verdict, errors.Verdict)


def both_kinds(error: errors.InvalidInvocation) -> tuple[errors.GaelpError, ValueError]:
    return error, error


async def a_client(client: BaseOllamaClient) -> None:
    assert_type(await client.generate_embedding("a"), list[float])
    assert_type(await client.embed(["a", "b"]), Embeddings)
    assert_type(client.chat("hi", temperature=0.2), AsyncGenerator[ChatResponse, None])
    async with LocalOllamaClient("llama3.2:1b", keep_alive="5m") as local:
        assert_type(local, LocalOllamaClient)
        async for chunk in local.chat([{"role": "user", "content": "hi"}]):
            assert_type(chunk.content, str)
            assert_type(chunk.done, bool)


async def several_nodes(settings: Settings) -> None:
    assert_type(client_from_settings(settings), BaseOllamaClient)
    async with DistributedOllamaClient("llama3.2:1b", ["http://a:11434", "http://b:11434"]) as client:
        assert_type(client, DistributedOllamaClient)
        assert_type(client.router, NodeRouter)
    DistributedOllamaClient("llama3.2:1b", {"http://a:11434": 4})
    DistributedOllamaClient("llama3.2:1b", LeastLoadedRouter(["http://a:11434"], slots=2))


async def an_agent(client: BaseOllamaClient) -> None:
    agent = ChatAgent(client)
    assert_type(agent.run("hi"), AsyncGenerator[ChatResponse, None])
    assert_type(await agent.get_full_response(Message(role="user", content="hi")), str)
    assert_type(agent.run_sync("hi"), str)
    assert_type(await agent.get_response(["hi", {"role": "user", "content": "there"}]), Answer)
    assert_type(await agent.get_parsed("hi", Town, model="llama3.2:1b", tools=[add]), Town)
    async with agent as same:
        assert_type(same, ChatAgent)


class Town(BaseModel):
    """A form for answers."""

    name: str


@register_tool
def add(a: int, b: int = 0) -> int:
    """A decorated function keeps its type."""
    return a + b


@register_tool("twice")
async def double(a: int) -> int:
    """A tool may be asynchronous."""
    return 2 * a


@register_parser("town")
def town(text: str) -> Town:
    """A parser may return a model."""
    return Town(name=text)


assert_type(add(1), int)
assert_type(town("Ulm"), Town)


@register_agent("pirate")
class Pirate(BaseAgent):
    """A decorated class keeps its type."""

    system_prompt = "Talk like a pirate."

    async def run(self, messages: Any, **options: Any) -> AsyncGenerator[ChatResponse, None]:
        async for chunk in super().run(messages, **options):
            yield chunk.model_copy(update={"content": chunk.content.upper()})


class Echo(BaseOllamaClient):
    """The second seed's extension example, as printed there."""

    async def generate_embedding(self, text: str) -> list[float]:
        return [float(len(text))]

    async def chat(self, messages: Any, **options: Any) -> AsyncGenerator[ChatResponse, None]:
        yield ChatResponse(content=str(messages), done=True, model=str(options))


assert_type(Pirate(ScriptedClient()), Pirate)
assert_type(load_settings(), Settings)
assert_type(load_settings().stall_timeout_s, float)
