"""What every client promises, on each of them: the fake, scripted servers, a real engine, a real Ollama.

`engine` needs llama.cpp; `ollama` the program on PATH, or a server with models at GAELP_TEST_OLLAMA_URL.
"""

import asyncio
from contextlib import aclosing

import pytest

from gaelp_tasks.clients import DistributedOllamaClient, LocalOllamaClient, ScriptedClient
from gaelp_tasks.errors import InvalidInvocation, ModelMissing
from gaelp_tasks.models import Message
from support.scripted_server import ScriptedServer

#: Short answers, and the same ones each time.
SHORT = {"num_predict": 8, "temperature": 0, "seed": 1}
NOWHERE = "no-such-model:1b"


@pytest.fixture(
    params=[
        "scripted",
        "http",
        "one of one",
        "one of two",
        pytest.param("engine", marks=pytest.mark.engine),
        pytest.param("ollama", marks=pytest.mark.ollama),
    ]
)
async def client(request):
    match request.param:
        case "scripted":
            async with ScriptedClient(["The", " sky", " is", " blue"]) as made:
                yield made
        case "http":
            async with ScriptedServer() as server, LocalOllamaClient(api_base=server.url) as made:
                yield made
        case "one of one":
            async with ScriptedServer() as server, DistributedOllamaClient(pool=[server.url]) as made:
                yield made
        case "one of two":
            async with (
                ScriptedServer() as server,
                ScriptedServer() as other,
                DistributedOllamaClient(pool=[server.url, other.url]) as made,
            ):
                yield made
        case "engine":
            async with LocalOllamaClient(api_base=request.getfixturevalue("node")) as made:
                yield made
        case "ollama":
            async with LocalOllamaClient(api_base=request.getfixturevalue("real_ollama")) as made:
                yield made


async def chunks_of(client, messages="Why is the sky blue?", **options):
    async with aclosing(client.chat(messages, **SHORT | options)) as stream:
        return [chunk async for chunk in stream]


async def text_of(client, messages="Why is the sky blue?", **options):
    return "".join(chunk.content for chunk in await chunks_of(client, messages, **options))


# --- chat -------------------------------------------------------------------------------------------


async def test_a_chat_is_text_in_pieces_and_one_last_chunk(client):
    chunks = await chunks_of(client)
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert "".join(chunk.content for chunk in chunks)


async def test_only_the_last_chunk_tells_reason_usage_and_load_time(client):
    *before, last = await chunks_of(client)
    assert {(chunk.done_reason, chunk.usage, chunk.load_s) for chunk in before} == {(None, None, None)}
    assert last.done_reason in {"stop", "length"}
    assert last.usage.completion_tokens > 0
    assert last.load_s >= 0


async def test_every_chunk_names_its_model(client):
    assert {chunk.model for chunk in await chunks_of(client)} == {await client.resolve(None)}


async def test_num_predict_cuts_the_answer_with_reason_length(client):
    *_, last = await chunks_of(client, num_predict=1)
    assert last.done_reason == "length"
    assert last.usage.completion_tokens == 1


async def test_every_form_of_input_gets_the_same_answer(client):
    question = "Why is the sky blue?"
    forms = [
        question,
        Message(role="user", content=question),
        {"role": "user", "content": question},
        [{"role": "user", "content": question}],
    ]
    assert len({await text_of(client, form) for form in forms}) == 1


async def test_a_conversation_of_several_turns_is_answered(client):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    assert await text_of(client, turns)


async def test_a_named_model_is_used(client):
    name = await client.resolve(None)
    assert {chunk.model for chunk in await chunks_of(client, model=name)} == {name}


async def test_what_is_no_conversation_is_refused(client):
    with pytest.raises(InvalidInvocation):
        await chunks_of(client, 7)


async def test_a_model_the_node_does_not_have_is_missing(client):
    with pytest.raises(ModelMissing, match=NOWHERE):
        await chunks_of(client, model=NOWHERE)
    with pytest.raises(ModelMissing, match=NOWHERE):
        await client.embed(["a"], model=NOWHERE)
    with pytest.raises(ModelMissing, match=NOWHERE):
        await client.load(NOWHERE)


async def test_chats_at_once_each_get_their_answer(client):
    alone = await text_of(client)
    assert all(await asyncio.gather(*[text_of(client) for _ in range(3)]))
    assert await text_of(client) == alone


async def test_a_stream_can_be_left_after_its_first_token_and_the_next_chat_is_whole(client):
    async with aclosing(client.chat("Count to a thousand.", num_predict=500)) as stream:
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert (await chunks_of(client))[-1].done


async def test_a_chat_can_be_cancelled_and_the_next_one_is_whole(client):
    begun = asyncio.Event()

    async def read():
        async with aclosing(client.chat("Count to a thousand.", num_predict=500)) as stream:
            async for _ in stream:
                begun.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await chunks_of(client))[-1].done


# --- embeddings -------------------------------------------------------------------------------------


async def test_each_text_gets_one_vector_in_its_order(client):
    texts = ["the sky", "a river", "the sky"]
    vectors = (await client.embed(texts)).vectors
    assert len(vectors) == len(texts)
    assert len({len(vector) for vector in vectors}) == 1
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-3)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)


async def test_embeddings_tell_model_and_tokens(client):
    answer = await client.embed(["the sky"])
    assert answer.model == await client.resolve(None, embeds=True)
    assert answer.usage.prompt_tokens > 0


async def test_one_embedding_is_the_same_as_in_a_list(client):
    [vector] = (await client.embed(["the sky"])).vectors
    assert await client.generate_embedding("the sky") == pytest.approx(list(vector), abs=1e-3)


async def test_no_texts_are_no_vectors(client):
    assert (await client.embed([])).vectors == ()


async def test_an_empty_text_is_refused(client):
    with pytest.raises(InvalidInvocation, match="empty"):
        await client.embed(["a", ""])


# --- the node ---------------------------------------------------------------------------------------


async def test_a_loaded_model_is_among_the_loaded_and_need_not_be_loaded_again(client):
    name = await client.resolve(None)
    assert await client.load() >= 0.0
    assert name in await client.loaded()
    assert await client.load(name) == 0.0


async def test_an_embedding_model_can_be_loaded_too(client):
    name = await client.resolve(None, embeds=True)
    assert await client.load(name) >= 0.0
    assert name in await client.loaded()


async def test_the_models_hold_what_resolve_names(client):
    names = [model.name for model in await client.models()]
    assert await client.resolve(None) in names
    assert await client.resolve(None, embeds=True) in names


async def test_a_named_model_is_resolved_to_itself(client):
    name = await client.resolve(None)
    assert await client.resolve(name) == name


async def test_a_model_that_is_probed_answers(client):
    assert await client.probe() >= 0.0
    assert await client.probe(await client.resolve(None, embeds=True)) >= 0.0
    with pytest.raises(ModelMissing, match=NOWHERE):
        await client.probe(NOWHERE)


async def test_the_version_is_told(client):
    assert await client.version()


async def test_a_client_can_be_closed_twice(client):
    await client.version()
    await client.close()
    await client.close()
