"""The work of a chat and of an embedding, as the walk sees it."""

import asyncio

import pytest

from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import NodeBusy, StreamStalled
from gaelp_tasks.models import Embedding, Message, ToolCall, Usage
from gaelp_tasks.registry import AGENTS
from gaelp_tasks.retries import Cut, Done, Snooze
from gaelp_tasks.streams import Piece
from gaelp_tasks.tasks.embedding import EmbeddingWork
from gaelp_tasks.tasks.walk import Run, walk
from support.fakes import NODE, FakeBroker, Workbench

CALL = ToolCall.model_validate({"function": {"name": "add", "arguments": {"a": 1}}})


@pytest.fixture
async def bench():
    """`bench(*script, **settings)` is a process whose client plays this script."""
    benches = []

    def make(*script, **settings):
        client = ScriptedClient(script) if script else ScriptedClient()
        benches.append(Workbench(asyncio.get_running_loop(), FakeBroker(), client, **settings))
        return benches[-1]

    yield make
    for made in benches:
        await made.redis.aclose()


async def test_the_agent_gets_the_conversation_and_every_option(bench):
    made = bench("x")
    await made.walk(
        made.run(
            prompt="Hi",
            agent="coding",
            model="scripted",
            options={"temperature": 0.5, "num_predict": 9},
            format="json",
            tools=[{"type": "function"}],
            think="low",
            stall_timeout_s=3.0,
        )
    )
    [asked] = made.at.client.asked
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert asked.messages[-1] == Message(role="user", content="Hi")
    assert (asked.model, asked.format, asked.think, asked.stall_timeout_s) == ("scripted", "json", "low", 3.0)
    assert list(asked.tools) == [{"type": "function"}]
    assert asked.options == {"temperature": 0.5, "num_predict": 9}


async def test_the_model_is_loaded_before_it_is_asked(bench):
    made = bench("x")
    await made.walk(made.run())
    assert made.at.client.loads == ["scripted"]


async def test_thinking_is_streamed_beside_the_text_and_kept_out_of_it(bench):
    made = bench(ChatResponse(thinking="hm"), "Hel", ChatResponse(thinking="hmm", content="lo"))
    outcome = await made.walk(made.run())
    assert outcome.result.text == made.text() == "Hello"
    assert "".join(event.thinking for event in made.events() if isinstance(event, Piece)) == "hmhmm"


async def test_tool_calls_are_in_the_result(bench):
    made = bench(ChatResponse(tool_calls=(CALL,)), ChatResponse(tool_calls=(CALL, CALL)))
    outcome = await made.walk(made.run())
    assert outcome.result.tool_calls == (CALL.model_dump(mode="json"),) * 3
    assert outcome.result.timings.first_token_s is not None


@pytest.mark.parametrize("chunk", [ChatResponse(thinking="hm"), ChatResponse(tool_calls=(CALL,))])
async def test_a_stall_after_thinking_or_a_tool_call_keeps_what_came(bench, chunk):
    made = bench(chunk, StreamStalled("silence"))
    outcome = await made.walk(made.run())
    assert isinstance(outcome, Cut)
    assert outcome.result.stop_reason == "stall"


async def test_an_empty_chunk_is_no_first_token(bench):
    made = bench(ChatResponse(), StreamStalled("silence"))
    outcome = await made.walk(made.run())
    assert not isinstance(outcome, Cut)


async def test_an_answer_that_the_node_cut_ends_with_length_and_is_done(bench):
    made = bench("a", "b", "c")
    outcome = await made.walk(made.run(options={"num_predict": 2}))
    assert isinstance(outcome, Done)
    assert (outcome.result.text, outcome.result.stop_reason) == ("ab", "length")
    assert outcome.result.usage.completion_tokens == 2


async def test_an_answer_longer_than_the_limit_is_cut_with_length_and_the_model_stopped(bench):
    made = bench("x" * 60, "y" * 60, "z" * 60, max_output_bytes=100)
    outcome = await made.walk(made.run())
    assert outcome.result.stop_reason == made.end()["stop_reason"] == "length"
    assert outcome.result.text == made.text() == "x" * 60 + "y" * 60
    assert outcome.result.usage.completion_tokens == 2
    await asyncio.wait_for(made.at.client.closed.wait(), 10)


async def test_an_answer_of_exactly_the_limit_is_whole(bench):
    made = bench("x" * 60, "y" * 40, max_output_bytes=100)
    outcome = await made.walk(made.run())
    assert (outcome.result.stop_reason, len(outcome.result.text)) == ("stop", 100)


async def test_the_limit_is_counted_in_bytes_not_in_characters(bench):
    made = bench("\u20ac" * 30, "\u20ac" * 30, "\u20ac" * 30, max_output_bytes=100)
    outcome = await made.walk(made.run())
    assert outcome.result.stop_reason == "length"


async def test_endless_thinking_is_cut_too(bench):
    made = bench(*[ChatResponse(thinking="x" * 60)] * 5, max_output_bytes=100)
    outcome = await made.walk(made.run())
    assert outcome.result.stop_reason == "length"


async def test_what_is_not_paid_for_is_not_told_and_cuts_the_run_with_its_text(bench):
    made = bench("a", "b", "c", "d")
    outcome = await made.walk(made.run(most_tokens=2))
    assert isinstance(outcome, Cut)
    assert outcome.result.stop_reason == made.end()["stop_reason"] == "budget"
    assert outcome.result.text == made.text() == "ab"
    assert outcome.result.usage.completion_tokens == 2
    await asyncio.wait_for(made.at.client.closed.wait(), 10)


async def test_an_answer_of_just_what_is_paid_for_is_whole(bench):
    made = bench("a", "b", ChatResponse(tool_calls=(CALL,)))
    outcome = await made.walk(made.run(most_tokens=2))
    assert isinstance(outcome, Done)
    assert (outcome.result.text, outcome.result.stop_reason) == ("ab", "stop")


async def test_thinking_is_paid_for_too(bench):
    made = bench(*[ChatResponse(thinking="hm")] * 5, "a")
    outcome = await made.walk(made.run(most_tokens=3))
    assert (outcome.result.text, outcome.result.stop_reason) == ("", "budget")
    assert "".join(event.thinking for event in made.events() if isinstance(event, Piece)) == "hmhmhm"


async def test_the_usage_that_the_node_told_is_kept(bench):
    told = Usage(prompt_tokens=11, completion_tokens=22)
    made = bench("a", ChatResponse(done=True, done_reason="stop", usage=told))
    outcome = await made.walk(made.run())
    assert outcome.result.usage == told


async def test_an_agent_that_asks_the_model_twice_pays_for_both(bench, monkeypatch):
    class Twice(BaseAgent):
        async def process(self, messages, **options):
            for _ in range(2):
                async for chunk in self.client.chat(messages, **options):
                    yield chunk

    monkeypatch.setitem(AGENTS.registered, "twice", Twice)
    made = bench("a", "b")
    outcome = await made.walk(made.run(agent="twice"))
    assert outcome.result.text == "abab"
    assert outcome.result.usage == Usage(prompt_tokens=2, completion_tokens=4)


# -- embeddings


def embedding(made, *texts, **asked):
    accepted = Embedding.parse({"input": texts} | asked, max_prompt_bytes=1000)
    run = Run(id="i", asked=accepted, attempt=1, published_at=None, cancellation=made.at.runs.enter("i"))
    return run, EmbeddingWork(run, accepted, made.at)


async def test_texts_become_vectors_in_their_order_by_one_call(bench):
    made = bench()
    run, work = embedding(made, "a b", "c", tier="background", priority=3)
    outcome = await walk(run, work, made.at)
    assert isinstance(outcome, Done)
    result = outcome.result
    assert len(result.embeddings) == 2
    assert list(result.embeddings[1]) == await made.at.client.generate_embedding("c")
    assert made.at.client.embedded[0] == ("a b", "c")
    assert (result.model, result.node, result.tier, result.priority) == ("scripted", NODE, "background", 3)
    assert result.usage == Usage(prompt_tokens=3)
    assert made.end()["outcome"] == "done"
    assert made.events()[0].facts["texts"] == 2
    assert "a b" not in str(made.events())


async def test_a_cancelled_embedding_has_no_vectors(bench):
    made = bench()
    run, work = embedding(made, "a")
    run.cancellation.stop(Reason.USER)
    outcome = await walk(run, work, made.at)
    assert isinstance(outcome, Cut)
    assert (outcome.result.embeddings, outcome.result.stop_reason) == ((), "cancelled")
    assert made.at.client.embedded == []


async def test_a_busy_node_puts_an_embedding_off(bench, monkeypatch):
    made = bench()

    async def full(*_, **__):
        raise NodeBusy("full", retry_after_s=9.0)

    monkeypatch.setattr(made.at.client, "embed", full)
    run, work = embedding(made, "a")
    assert await walk(run, work, made.at) == Snooze(9.0, "full")
