"""`gaelp plan`: on a real model server, and on one whose every byte the test decides."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app
from gaelp_tasks.cli import planning
from gaelp_tasks.cli.app import cli
from gaelp_tasks.cli.server import Server
from gaelp_tasks.clients import LocalOllamaClient
from gaelp_tasks.demo.tiny_model import write_tiny_chat_model
from gaelp_tasks.demo.weights import fetch_minilm, fetch_smollm2
from gaelp_tasks.errors import BrokerUnavailable, ModelMissing
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.settings import Settings
from support.eventually import eventually
from support.model_server import ROOMY, ROOT, ModelServer, tiny_models
from support.scripted_server import ScriptedServer

MIB, GIB = 1024**2, 1024**3
LLAMA_8B = {
    "block_count": 32, "context_length": 131072, "embedding_length": 4096, "feed_forward_length": 14336,
    "attention.head_count": 32, "attention.head_count_kv": 8,
}  # fmt: skip


def gaelp(*words):
    return CliRunner().invoke(cli, ["plan", *words])


def told(*words):
    done = gaelp(*words, "--json")
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def nodes(monkeypatch):
    """`nodes(url, ...)` are GAELP_OLLAMA_NODES from now on; no worker runs."""
    monkeypatch.setattr(planning, "live_nodes", lambda _: [])

    def name(*urls, **more):
        settings = Settings(ollama_nodes=urls, connect_timeout_s=2.0, **more)
        monkeypatch.setitem(app.__dict__, "settings", settings)

    return name


@pytest.fixture
def announce(monkeypatch):
    """`announce(url, free_bytes, source)`: a worker tells this memory of its node."""
    found = []
    monkeypatch.setattr(planning, "live_nodes", lambda _: found)

    def tell(url, free_bytes, source="host"):
        memory = MemorySnapshot(total_bytes=2 * free_bytes, free_bytes=free_bytes, source=source)
        found.append(
            NodeSnapshot(
                worker="w", pid=1, url=url, healthy=True, slots=1, memory=memory, started_at=0, seen_at=0
            )
        )

    return tell


def model(name, sizes, *, size=4 * GIB, architecture="llama", **show):
    """What a server lists, and what it shows of it."""
    info = {f"{architecture}.{key}": value for key, value in sizes.items()}
    shown = {"capabilities": ["completion"], "model_info": {"general.architecture": architecture, **info}}
    return {"name": name, "size": size, "digest": f"digest of {name}"}, shown | show


@pytest.fixture
async def server(nodes):
    """Has the models that `server.have(model(...), ...)` names; `server.loaded` is what /api/ps answers."""
    async with ScriptedServer() as started:
        models = {}

        async def tags(request, reply):
            reply.whole({"models": [listed for listed, _ in models.values()]})

        async def show(request, reply):
            asked = request.json()
            shown = models[asked["model"]][1]
            whole = shown.get("verbose", shown) if asked.get("verbose") else shown
            reply.whole({key: value for key, value in whole.items() if key != "verbose"})

        async def ps(request, reply):
            reply.whole({"models": started.loaded})

        for path, handler in (("/api/tags", tags), ("/api/show", show), ("/api/ps", ps)):
            started.on(path, handler)
        started.loaded = []
        started.have = lambda *given: models.update(
            {listed["name"]: (listed, shown) for listed, shown in given}
        )
        nodes(started.url)
        yield started


# --- real engine ----------------------------------------------------------------------------------


def loaded_plan(folder, models, nodes, **flags):
    """The plan of a server that has all its models in memory."""
    with ModelServer(folder, models=models, **flags) as running:
        nodes(running.url)
        asked = Server(running.url, app.settings)
        for shape in asked.shapes():
            asked.load(shape.name, embeds=shape.embeds)
        asked.close()
        code, document = told("--memory", "24GiB")
    assert (code, document["troubles"]) == (0, [])
    return document["nodes"][0]


@pytest.mark.engine
@pytest.mark.parametrize("flags", [{"num_parallel": 4, "num_ctx": 2048}, {"num_parallel": 2, "num_ctx": 512}])
def test_the_estimate_is_near_what_the_engine_really_takes(tmp_path, nodes, flags):
    wide = write_tiny_chat_model(tmp_path / "wide.gguf", width=512, blocks=8)
    found = loaded_plan(tmp_path, {**tiny_models(tmp_path), "wide:latest": wide}, nodes, **flags)
    assert found["num_parallel"]["now"] == flags["num_parallel"]
    assert len(found["models"]) == 3
    for one in found["models"]:
        assert one["measured_bytes"] == pytest.approx(one["estimated_bytes"], rel=0.25), one["name"]
        assert 0 < one["num_ctx"] <= flags["num_ctx"]


@pytest.mark.smollm2
def test_the_estimate_for_the_embedded_models_is_within_a_tenth(tmp_path, nodes):
    cache = ROOT / ".cache/models"
    models = {"smollm2:135m": fetch_smollm2(cache), "all-minilm": fetch_minilm(cache)}
    found = loaded_plan(tmp_path, models, nodes, num_parallel=4, num_ctx=2048)
    for one in found["models"]:
        assert one["measured_bytes"] == pytest.approx(one["estimated_bytes"], rel=0.1), one["name"]


@pytest.mark.engine
async def test_the_worker_s_client_reads_the_same_shape_and_asks_once(node):
    async with LocalOllamaClient("tiny", node) as client:
        shape = await client.shape()
        assert await client.shape("tiny:latest") is not None
        with pytest.raises(ModelMissing, match="gaelp models pull nowhere"):
            await client.shape("nowhere")
    asked = Server(node, Settings(ollama_nodes=(node,)))
    [same] = await asyncio.to_thread(asked.shapes, ["tiny"])
    asked.close()
    assert shape == same
    assert shape.layers
    assert shape.default_tokens == ROOMY


@pytest.mark.redis
@pytest.mark.engine
def test_a_running_worker_tells_the_memory_of_its_node(worker, node, monkeypatch):
    monkeypatch.setitem(app.__dict__, "settings", Settings(ollama_nodes=(node,), os_reserve=0))
    [announced] = eventually(lambda: [one for one in live_nodes(app) if one.healthy])
    code, document = told("tiny")
    assert (code, document["troubles"]) == (0, [])
    [found] = document["nodes"]
    assert found["memory"]["source"] == announced.memory.source
    assert found["memory"]["free_bytes"] == pytest.approx(announced.memory.free_bytes, rel=0.5)
    assert found["models"][0]["num_parallel"] >= 1


# --- a scripted server ----------------------------------------------------------------------------


async def test_arrays_that_were_left_out_are_asked_for_verbosely_and_once(server):
    _, whole = model("hybrid:1b", LLAMA_8B | {"attention.head_count_kv": [8] * 16 + [4] * 16})
    server.have(
        model("hybrid:1b", LLAMA_8B | {"attention.head_count_kv": []}, verbose=whole), model("b", LLAMA_8B)
    )
    _, document = await asyncio.to_thread(told, "--memory", "24GiB", "--num-ctx", "4096")
    slot = {one["name"]: one["kv_slot_bytes"] for one in document["nodes"][0]["models"]}
    assert slot == {"hybrid:1b": 384 * MIB, "b": 512 * MIB}
    assert [r.json().get("verbose", False) for r in server.asked("/api/show")] == [False, True, False]
    async with LocalOllamaClient("hybrid:1b", server.url) as client:
        first = await client.shape()
        questions = len(server.asked("/api/show"))
        assert await client.shape() == first
    assert len(first.layers) == 32
    assert len(server.asked("/api/show")) == questions


async def test_a_person_reads_what_to_set_and_why(server):
    server.have(model("llama3.1:8b", LLAMA_8B, size=int(4.6 * GIB)))
    done = await asyncio.to_thread(gaelp, "llama3.1:8b", "--memory", "24GiB", "--num-ctx", "8192")
    assert done.exit_code == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "llama3.1:8b 4.60 GiB 1.00 GiB" in words
    assert (
        "Memory: 24.0 GiB (as said); 2.00 GiB are the system's; estimates times 1.5; f16 KV cache." in words
    )
    assert "NUM_PARALLEL 8:" in words
    assert (
        "-> Start the server with OLLAMA_NUM_PARALLEL=8 (now 1) and its worker with GAELP_NUM_PARALLEL=8; "
        "set GAELP_NUM_CTX=8192 everywhere." in words
    )
    assert done.stderr == ""


async def test_a_model_whose_shape_fails_costs_only_itself(server):
    server.have(model("good", LLAMA_8B), model("bad", LLAMA_8B), model("fine", LLAMA_8B))
    show = server._handlers["/api/show"]

    async def fails_for_one(request, reply):
        if request.json()["model"] == "bad":
            reply.whole({"error": "unexpected EOF"}, status=500)
        else:
            await show(request, reply)

    server.on("/api/show", fails_for_one)
    code, document = await asyncio.to_thread(told, "--memory", "24GiB")
    assert code == 1
    assert [one["name"] for one in document["nodes"][0]["models"]] == ["good", "fine"]
    [trouble] = document["troubles"]
    assert "unexpected EOF" in trouble["trouble"]
    code, document = await asyncio.to_thread(told, "good", "gone", "--memory", "24GiB")
    assert (code, len(document["nodes"][0]["models"])) == (1, 1)
    assert "no model 'gone" in document["troubles"][0]["trouble"]
    code, document = await asyncio.to_thread(told, "bad", "--memory", "24GiB")
    assert (code, document["nodes"]) == (1, [])


async def test_a_node_that_only_embeds_is_told_to_change_nothing(server, nodes):
    server.have(model("e", LLAMA_8B, capabilities=["embedding"]))
    nodes(server.url, num_parallel=4)
    done = await asyncio.to_thread(gaelp, "--memory", "24GiB")
    assert done.exit_code == 0
    assert "->" not in done.stdout


async def test_where_nothing_fits_nothing_is_to_be_set(server):
    server.have(model("m", LLAMA_8B))
    done = await asyncio.to_thread(gaelp, "--memory", "3GiB")
    assert done.exit_code == 0
    assert "m does not fit: one slot of 4096 tokens needs" in " ".join(done.stdout.split())
    assert "->" not in done.stdout


async def test_a_model_that_runs_one_at_a_time_was_loaded_with_one_slot(server, nodes):
    server.have(model("eyes", LLAMA_8B, architecture="qwen3vl"), model("m", LLAMA_8B))
    server.loaded = [
        {"name": name, "size": 5 * GIB, "size_vram": 0, "context_length": 8192} for name in ("eyes", "m")
    ]
    nodes(server.url, num_parallel=4)
    _, document = await asyncio.to_thread(told, "--memory", "24GiB")
    eyes, other = document["nodes"][0]["models"]
    server.loaded[0]["context_length"] = 0  # an older server does not tell
    _, untold = await asyncio.to_thread(told, "--memory", "24GiB", "--num-ctx", "8192")
    assert untold["nodes"][0]["models"][0]["estimated_bytes"] == eyes["estimated_bytes"]
    assert other["estimated_bytes"] - eyes["estimated_bytes"] == 3 * GIB
    assert eyes["measured_bytes"] == 5 * GIB


async def test_options_stand_before_settings(server, nodes):
    server.have(model("m", LLAMA_8B))
    nodes(
        server.url, os_reserve="4GiB", safety_factor=2.0, num_ctx=4096, kv_cache_type="q8_0", num_parallel=3
    )
    _, document = await asyncio.to_thread(told, "--memory", "24GiB")
    [by_settings] = document["nodes"]
    assert by_settings["reserve_bytes"] == 4 * GIB
    assert (by_settings["safety_factor"], by_settings["kv_cache_type"]) == (2.0, "q8_0")
    assert by_settings["num_parallel"] == {"now": 3, "advised": 8}
    assert by_settings["models"][0]["kv_slot_bytes"] == 272 * MIB
    options = "--reserve 1GiB --safety-factor 1 --num-ctx 8192 --kv-cache-type f16 --memory 24GiB"
    done = await asyncio.to_thread(gaelp, *options.split(), "--json")
    [by_options] = json.loads(done.stdout)["nodes"]
    assert by_options["reserve_bytes"] == GIB
    assert by_options["models"][0]["kv_slot_bytes"] == GIB
    assert "The safety factor 1 is outside 1.5 to 2" in " ".join(done.stderr.split())


async def test_the_naive_model_is_used_where_the_settings_say_so(server, nodes):
    server.have(model("m", LLAMA_8B))
    nodes(server.url, memory_model="naive", num_ctx=4096)
    _, document = await asyncio.to_thread(told, "--memory", "24GiB")
    [found] = document["nodes"]
    assert found["num_parallel"]["advised"] == found["models"][0]["naive_slots"] == 3


@pytest.mark.parametrize(
    ("source", "gives_back"), [("host", GIB), ("cgroup v2", GIB), ("gpu", GIB), ("budget", GIB)]
)
async def test_what_models_hold_now_counts_as_free_as_its_probe_sees_it(server, announce, source, gives_back):
    """Of 6 GiB one is on a GPU; of the other five four are weights, which a host counts as free anyway.

    A budget is of VRAM where there is some.
    """
    server.have(model("m", LLAMA_8B))
    server.loaded = [{"name": "m", "size": 6 * GIB, "size_vram": GIB, "context_length": 4096}]
    announce("http://another", 1)
    announce(server.url, 10 * GIB, source)
    _, document = await asyncio.to_thread(told)
    memory = document["nodes"][0]["memory"]
    assert memory == {"free_bytes": 10 * GIB + gives_back, "given_back_bytes": gives_back, "source": source}
    words = " ".join((await asyncio.to_thread(gaelp)).stdout.split())
    assert f"GiB ({source}), {gives_back // GIB}.00 GiB of it held by models now" in words


@pytest.mark.parametrize("source", [None, "unknown"])
async def test_without_any_word_on_memory_one_sentence_says_what_to_do(server, announce, source):
    server.have(model("m", LLAMA_8B))
    if source:
        announce(server.url, 0, source)
    code, document = await asyncio.to_thread(told)
    assert (code, document["nodes"]) == (1, [])
    assert document["troubles"] == [
        {
            "node": server.url,
            "trouble": f"No worker tells the memory of {server.url}: start one with `gaelp worker`, or say "
            "how much, --memory 24GiB.",
        }
    ]


def test_without_redis_the_memory_must_be_said(nodes, monkeypatch):
    def fail(_):
        raise BrokerUnavailable("Redis is away.")

    nodes("http://127.0.0.1:9")
    monkeypatch.setattr(planning, "live_nodes", fail)
    done = gaelp()
    assert isinstance(done.exception, BrokerUnavailable)
    assert "--memory 24GiB" in str(done.exception)
    said = gaelp("--memory", "24GiB")
    assert said.exit_code == 1
    assert "cannot be reached" in said.stderr


async def test_a_node_that_is_away_or_lacks_a_model_is_told_and_the_others_are_planned(server, nodes):
    server.have(model("m", LLAMA_8B))
    nodes(server.url, "http://127.0.0.1:9")
    code, document = await asyncio.to_thread(told, "m", "--memory", "24GiB")
    assert code == 1
    assert [one["node"] for one in document["nodes"]] == [server.url]
    assert document["troubles"][0]["node"] == "http://127.0.0.1:9"
    missing = await asyncio.to_thread(gaelp, "nowhere", "--memory", "24GiB", "--node", server.url)
    assert missing.exit_code == 1
    assert "gaelp models pull nowhere" in " ".join(missing.stderr.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--memory", "lots"), "lots is no size"),
        (("--memory", "-3"), "-3 is no size"),
        (("--reserve", "2 apples"), "2 apples is no size"),
        (("--safety-factor", "0.9"), "0.9 is no number from 1 to 100"),
        (("--safety-factor", "nan"), "nan is no number from 1 to 100"),
        (("--safety-factor", "inf"), "inf is no number from 1 to 100"),
        (("--kv-cache-type", "q2"), "q2 is none of f16, bf16, q8_0, q4_0, f32"),
        (("--num-ctx", "-1"), "should be greater than or equal to 0"),
        (("--node", "localhost"), "localhost is no http:// or https:// address"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(nodes, words, sentence):
    nodes("http://127.0.0.1:9")
    done = gaelp(*words)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "answer",
    ["<html>", {"models": "none"}, {"models": [{"size": 1}]}, {"model_info": "nothing", "models": []}],
)
async def test_whatever_a_server_answers_becomes_one_sentence_or_a_plan(server, answer):
    async def reply_so(request, reply):
        reply.whole(answer)

    server.have(model("m", LLAMA_8B))
    for path in ("/api/tags", "/api/show", "/api/ps", "/api/version"):
        server.on(path, reply_so)
    code, document = await asyncio.to_thread(told, "--memory", "24GiB")
    assert code == (1 if document["troubles"] else 0)
    assert all("\n" not in one["trouble"] for one in document["troubles"])


async def test_a_model_that_tells_no_shape_is_planned_by_the_naive_formula(server):
    server.have(model("m", {}, size=4 * GIB))
    _, document = await asyncio.to_thread(told, "--memory", "24GiB")
    [one] = document["nodes"][0]["models"]
    assert (one["kv_slot_bytes"], one["kv_slots"], one["naive_slots"]) == (None, 3, 3)
    assert "?" in (await asyncio.to_thread(gaelp, "--memory", "24GiB")).stdout


def test_help_teaches_with_an_example():
    words = " ".join(gaelp("--help").stdout.split())
    assert "Example: gaelp plan llama3.1:8b nomic-embed-text --memory 24GiB --num-ctx 8192" in words
