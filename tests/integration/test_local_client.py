"""What LocalOllamaClient asks of its node, request by request."""

import pytest

from gaelp_tasks.clients import Limits, LocalOllamaClient
from gaelp_tasks.errors import InvalidInvocation, ModelMissing
from gaelp_tasks.models.capacity import Resident
from gaelp_tasks.settings import Settings
from support.scripted_server import CHAT_MODEL, EMBED_MODEL, ScriptedServer


@pytest.fixture
async def server():
    async with ScriptedServer() as running:
        yield running


async def chat(client, **options):
    return [chunk async for chunk in client.chat("Hi", **options)]


async def test_num_ctx_and_keep_alive_are_the_same_in_every_call(server):
    async with LocalOllamaClient(CHAT_MODEL, server.url, EMBED_MODEL, "5m", num_ctx=2048) as client:
        await client.load()
        await chat(client, temperature=0.1)
        await client.embed(["a"])
    bodies = [server.asked(f"/api/{path}")[0].json() for path in ("generate", "chat", "embed")]
    assert {body["options"]["num_ctx"] for body in bodies} == {2048}
    assert {body["keep_alive"] for body in bodies} == {"5m"}
    assert bodies[1]["options"] == {"temperature": 0.1, "num_ctx": 2048}


async def test_a_load_is_never_taken_for_a_wish_to_unload(server):
    """To Ollama an empty prompt with a keep_alive of 0 is one."""
    async with LocalOllamaClient(CHAT_MODEL, server.url, EMBED_MODEL, 0) as client:
        await client.load()
        await chat(client)
    load, talk = (server.asked(f"/api/{path}")[0].json() for path in ("generate", "chat"))
    assert load["keep_alive"] > 0
    assert talk["keep_alive"] == 0


async def test_without_num_ctx_the_node_decides(server):
    async with LocalOllamaClient(CHAT_MODEL, server.url, EMBED_MODEL) as client:
        await client.load()
        await chat(client)
        await client.embed(["a"])
    for path in ("generate", "chat", "embed"):
        assert "options" not in server.asked(f"/api/{path}")[0].json()


async def test_a_caller_cannot_vary_num_ctx(server):
    async with LocalOllamaClient(CHAT_MODEL, server.url) as client:
        with pytest.raises(InvalidInvocation, match="GAELP_NUM_CTX"):
            await chat(client, num_ctx=8192)
    assert server.asked("/api/chat") == []


async def test_a_model_in_memory_is_not_loaded_again(server):
    async with LocalOllamaClient(CHAT_MODEL, server.url) as client:
        assert await client.load() > 0.0
        assert await client.load() == 0.0
    assert len(server.asked("/api/generate")) == 1
    assert server.asked("/api/generate")[0].json() == {
        "model": CHAT_MODEL,
        "stream": False,
        "keep_alive": 300,
    }


async def test_models_in_memory_are_told_with_what_they_take(server):
    listed = [
        {"name": "a:latest", "size": 6 * 1024**3, "size_vram": 5 * 1024**3, "context_length": 4096},
        {"name": "b:latest"},
    ]

    async def lists(_request, reply):
        reply.whole({"models": listed})

    server.on("/api/ps", lists)
    async with LocalOllamaClient("a", server.url) as client:
        assert await client.resident() == (
            Resident(name="a:latest", size_bytes=6 * 1024**3, vram_bytes=5 * 1024**3),
            Resident(name="b:latest"),
        )
        assert await client.loaded() == ("a:latest", "b:latest")


async def test_a_model_in_memory_with_another_context_is_loaded_anew(server):
    async with LocalOllamaClient(CHAT_MODEL, server.url, num_ctx=4096) as client:
        await client.load()  # the scripted node says 2048 whatever it was asked
        await client.load()
    assert len(server.asked("/api/generate")) == 2


async def test_a_name_without_a_tag_is_found_among_the_loaded(server):
    async with LocalOllamaClient("tiny", server.url) as client:
        await client.load()
        assert await client.load() == 0.0


async def test_an_embedding_model_is_loaded_by_an_empty_embedding(server):
    async with LocalOllamaClient(api_base=server.url) as client:
        await client.load(EMBED_MODEL)
    assert server.asked("/api/generate") == []
    assert server.asked("/api/embed")[0].json()["input"] == ""


async def test_the_nodes_first_model_is_asked_for_once_in_a_while(server):
    async with LocalOllamaClient(api_base=server.url) as client:
        assert [await client.resolve(None) for _ in range(3)] == [CHAT_MODEL] * 3
        assert await client.resolve(None, embeds=True) == EMBED_MODEL
    assert len(server.asked("/api/tags")) == 2
    assert len(server.asked("/api/show")) == 2  # once for each model, both times around


async def test_the_clients_own_models_need_no_question(server):
    async with LocalOllamaClient("mine", server.url, "mine-embed") as client:
        assert (await client.resolve(None), await client.resolve(None, embeds=True)) == ("mine", "mine-embed")
        assert await client.resolve("named", embeds=True) == "named"
    assert server.requests == []


@pytest.mark.parametrize("status", [404, 405])
async def test_a_node_without_show_is_judged_by_families(server, status):
    async def no_such_path(request, reply):
        reply.whole({"error": "not found"}, status)

    server.on("/api/show", no_such_path)
    async with LocalOllamaClient(api_base=server.url) as client:
        assert await client.resolve(None) == CHAT_MODEL
        assert await client.resolve(None, embeds=True) == EMBED_MODEL


async def test_a_node_that_lists_capabilities_is_not_asked_to_show_them(server):
    async def tags(request, reply):
        reply.whole(
            {
                "models": [
                    {"name": "a", "capabilities": ["embedding"]},
                    {"name": "b", "capabilities": ["tools"]},
                ]
            }
        )

    server.on("/api/tags", tags)
    async with LocalOllamaClient(api_base=server.url) as client:
        assert (await client.resolve(None), await client.resolve(None, embeds=True)) == ("b", "a")
    assert server.asked("/api/show") == []


@pytest.mark.parametrize(("embeds", "words"), [(False, "no model that chats"), (True, "no embedding model")])
async def test_a_node_without_a_fitting_model_says_how_to_get_one(server, embeds, words):
    async def tags(request, reply):
        reply.whole({"models": []})

    server.on("/api/tags", tags)
    async with LocalOllamaClient(api_base=server.url) as client:
        with pytest.raises(ModelMissing, match=f"{words}; pull one there: gaelp models pull"):
            await client.resolve(None, embeds=embeds)


async def test_a_client_is_made_from_the_settings(server):
    settings = Settings(
        default_model="d",
        embed_model="e",
        keep_alive_s=-1,
        num_ctx=1024,
        ollama_headers={"X-Key": "s3cret"},
        stall_timeout_s=7,
    )
    async with LocalOllamaClient.from_settings(settings, server.url) as client:
        assert (client.model_name, client.embed_model, client.num_ctx) == ("d", "e", 1024)
        assert client.limits == Limits(stall_s=7)
        await client.version()
    assert server.requests[0].headers["x-key"] == "s3cret"
