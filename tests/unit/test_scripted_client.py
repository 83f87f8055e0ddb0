"""The shipped fake: it plays its script, remembers what it was asked, and notices who leaves early."""

import asyncio
from contextlib import aclosing

import pytest

from gaelp_tasks.clients import ChatResponse, ScriptedClient
from gaelp_tasks.errors import ModelMissing, NodeBusy, NodeFailed
from gaelp_tasks.models import Usage


async def played(client, prompt="one two", **options):
    async with aclosing(client.chat(prompt, **options)) as stream:
        return [chunk async for chunk in stream]


async def test_without_a_script_it_greets_and_says_done():
    *tokens, last = await played(ScriptedClient())
    assert [chunk.content for chunk in tokens] == ["Hello", ",", " world"]
    assert last.done_reason == "stop"
    assert last.usage == Usage(prompt_tokens=2, completion_tokens=3)


async def test_each_chat_plays_the_next_script_and_then_the_last_again():
    client = ScriptedClient([NodeBusy("full")], ["ok"])
    with pytest.raises(NodeBusy):
        await played(client)
    assert [(await played(client))[0].content for _ in range(2)] == ["ok", "ok"]


async def test_an_error_comes_after_the_tokens_before_it():
    client = ScriptedClient(["a", NodeFailed("boom")])
    stream = client.chat("Hi")
    assert (await anext(stream)).content == "a"
    with pytest.raises(NodeFailed, match="boom"):
        await anext(stream)
    assert not client.closed.is_set()


async def test_a_gate_holds_the_stream_until_it_is_opened():
    gate = asyncio.Event()
    task = asyncio.create_task(played(ScriptedClient([gate, "a"])))
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    assert (await task)[0].content == "a"


async def test_a_function_is_called_at_its_step():
    seen = []

    async def note():
        seen.append("here")

    await played(ScriptedClient(["a", note]))
    assert seen == ["here"]


async def test_a_script_may_send_its_own_last_chunk():
    last = ChatResponse(done=True, done_reason="length", usage=Usage(completion_tokens=9))
    assert (await played(ScriptedClient(["a", last, "never"])))[1:] == [last]


@pytest.mark.parametrize(
    ("num_predict", "text", "reason"), [(1, "a", "length"), (2, "ab", "length"), (3, "ab", "stop")]
)
async def test_num_predict_cuts_the_script(num_predict, text, reason):
    *tokens, last = await played(ScriptedClient(["a", "b"]), num_predict=num_predict)
    assert ("".join(chunk.content for chunk in tokens), last.done_reason) == (text, reason)


async def test_it_remembers_what_it_was_asked():
    client = ScriptedClient()
    await played(client, think="low", stall_timeout_s=3.0, temperature=0.5)
    await client.embed(["a", "b"])
    await client.load()
    [asked] = client.asked
    assert asked.messages[0].content == "one two"
    assert (asked.model, asked.think, asked.stall_timeout_s) == ("scripted", "low", 3.0)
    assert asked.options == {"temperature": 0.5}
    assert (client.embedded, client.loads) == ([("a", "b")], ["scripted"])


async def test_leaving_at_the_last_chunk_is_not_leaving_early():
    client = ScriptedClient(["a"])
    async with aclosing(client.chat("Hi")) as stream:
        async for chunk in stream:
            if chunk.done:
                break
    assert not client.closed.is_set()


async def test_the_model_is_slow_to_load_once():
    client = ScriptedClient(load_s=2.5)
    assert await client.loaded() == ()
    assert (await client.load(), await client.load()) == (2.5, 0.0)
    assert await client.loaded() == ("scripted",)


async def test_another_model_is_missing():
    with pytest.raises(ModelMissing):
        await played(ScriptedClient(), model="other")
