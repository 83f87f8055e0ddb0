"""Each limit of a client ends what a node draws out, and no other does."""

import asyncio
from contextlib import aclosing

import pytest

from gaelp_tasks.errors import FirstTokenTimeout, LoadTimeout, NodeUnreachable, StreamStalled
from support.answers import texts_of
from support.scripted_server import TOKENS


async def black_hole(request, reply):
    await reply.gone.wait()


async def test_a_question_that_is_never_answered_ends_as_unreachable(server, impatient):
    client = await impatient(answer_s=0.3)
    server.on("/api/version", black_hole)
    with pytest.raises(NodeUnreachable, match=r"did not answer /api/version within 0\.3 s"):
        await client.version()


async def test_a_load_that_never_ends_is_a_load_timeout(server, impatient):
    client = await impatient(load_s=0.3)
    server.on("/api/generate", black_hole)
    with pytest.raises(LoadTimeout, match=r"did not load 'tiny:latest' within 0\.3 s"):
        await client.load()


async def test_no_token_after_the_prompt_is_a_first_token_timeout(server, impatient):
    left = asyncio.Event()

    async def hang(request, reply):
        await reply.gone.wait()
        left.set()

    client = await impatient(first_token_s=0.3)
    await client.load()
    server.on("/api/chat", hang)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == ([], FirstTokenTimeout)
    assert "no first token within 0.3 s" in str(error)
    await left.wait()


async def test_headers_without_a_token_are_no_first_token(server, impatient):
    async def headers_only(request, reply):
        reply.head()
        reply.send(b'{"model":')  # a line that is not complete is no token either
        await reply.gone.wait()

    client = await impatient(first_token_s=0.3)
    await client.load()
    server.on("/api/chat", headers_only)
    _, error = await texts_of(client)
    assert isinstance(error, FirstTokenTimeout)


async def test_the_first_token_of_a_model_not_known_to_be_loaded_may_take_the_load_limit_too(
    server, impatient
):
    client = await impatient(load_s=0.3, first_token_s=0.1)
    server.on("/api/chat", black_hole)
    _, error = await texts_of(client)
    assert "no first token within 0.4 s" in str(error)


async def test_silence_between_tokens_is_a_stall(server, impatient):
    async def stall(request, reply):
        reply.head()
        reply.token("Once")
        await reply.gone.wait()

    server.on("/api/chat", stall)
    texts, error = await texts_of(await impatient(stall_s=0.3))
    assert (texts, type(error)) == (["Once"], StreamStalled)
    assert "sent nothing for 0.3 s" in str(error)


async def test_drops_of_a_line_that_never_ends_are_a_stall(server, impatient):
    async def drip(request, reply):
        reply.head()
        reply.token("Once")
        while not reply.gone.is_set():
            reply.send(b" ")
            await asyncio.sleep(0.05)

    server.on("/api/chat", drip)
    _, error = await texts_of(await impatient(stall_s=0.3))
    assert isinstance(error, StreamStalled)


@pytest.mark.parametrize("stall_timeout_s", [0, 30.0])
async def test_a_caller_may_replace_the_stall_limit(server, impatient, stall_timeout_s):
    async def slow(request, reply):
        reply.head()
        reply.token("Once")
        await asyncio.sleep(0.6)  # twice the client's own limit
        reply.last()
        reply.end()

    server.on("/api/chat", slow)
    texts, error = await texts_of(await impatient(stall_s=0.3), stall_timeout_s=stall_timeout_s)
    assert (texts, error) == (["Once", ""], None)


async def test_a_slow_reader_is_not_taken_for_a_stalled_node(impatient):
    client = await impatient(stall_s=0.3)
    texts = []
    async with aclosing(client.chat("Hi")) as stream:
        async for chunk in stream:
            texts.append(chunk.content)
            await asyncio.sleep(0.15)  # in sum beyond the limit
    assert "".join(texts) == "".join(TOKENS)


async def test_the_total_limit_ends_an_answer_that_keeps_coming(server, impatient):
    async def endless(request, reply):
        reply.head()
        while not reply.gone.is_set():
            reply.token("and ")
            await asyncio.sleep(0.02)

    server.on("/api/chat", endless)
    texts, error = await texts_of(await impatient(total_s=1.0))
    assert texts
    assert isinstance(error, StreamStalled)
    assert "did not finish its answer within 1 s" in str(error)
