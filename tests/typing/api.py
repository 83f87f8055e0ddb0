"""Only for mypy (make lint): what a user's type checker sees of the public surface. It is never run."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any, assert_type

from gaelp_tasks import InvocationHandle, errors, register_agent
from gaelp_tasks.agents import BaseAgent, ChatAgent
from gaelp_tasks.clients import BaseOllamaClient, ChatResponse, Embeddings, LocalOllamaClient, ScriptedClient
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


async def an_agent(client: BaseOllamaClient) -> None:
    agent = ChatAgent(client)
    assert_type(agent.run("hi"), AsyncGenerator[ChatResponse, None])
    assert_type(await agent.get_full_response(Message(role="user", content="hi")), str)
    assert_type(agent.run_sync("hi"), str)
    async with agent as same:
        assert_type(same, ChatAgent)


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
