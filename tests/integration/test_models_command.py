"""`gaelp models`: on a real model server, and on one whose every byte the test decides."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import requests
from typer.testing import CliRunner

from gaelp_tasks import app
from gaelp_tasks.cli import models
from gaelp_tasks.cli.app import cli
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.overview import Runner
from gaelp_tasks.settings import Settings
from support.eventually import eventually
from support.scripted_server import ScriptedServer

CHAT, EMBED = "tiny:latest", "tiny-embed:latest"
GONE = "http://127.0.0.1:9"


def gaelp(*words, stdin=None):
    return CliRunner().invoke(cli, ["models", *words], input=stdin)


@pytest.fixture
def nodes(monkeypatch):
    """`nodes(url, ...)` are GAELP_OLLAMA_NODES from now on; nobody runs anything."""
    monkeypatch.setattr(models, "live_nodes", lambda _: [])
    monkeypatch.setattr(models, "runners", lambda *_: [])

    def name(*urls, **more):
        monkeypatch.setitem(
            app.__dict__, "settings", Settings(ollama_nodes=urls, connect_timeout_s=2.0, **more)
        )

    return name


def told(*words):
    done = gaelp(*words, "--json")
    return done.exit_code, json.loads(done.stdout)


def in_memory(url):
    return {model["name"] for model in requests.get(f"{url}/api/ps", timeout=10).json()["models"]}


@pytest.mark.engine
@pytest.mark.parametrize("model", ["tiny", "tiny-embed:latest"])
def test_a_model_is_warmed_listed_and_unloaded(node, nodes, model):
    nodes(node)
    full = model if ":" in model else f"{model}:latest"
    code, warmed = told("warm", model)
    assert (code, warmed["warmed"][0]["node"], warmed["troubles"]) == (0, node, [])
    assert full in in_memory(node)

    code, listed = told("list")
    assert code == 0
    [row] = [row for row in listed["models"] if row["name"] == full]
    assert row["memory_bytes"] > 0
    assert row["node"] == node
    assert row["size_bytes"] > 0
    assert row["context"] > 0
    assert len(row["digest"]) == 64
    assert ("embedding" in row["capabilities"]) is (full == EMBED)
    assert full in gaelp("list").stdout
    assert re.search(r"B, for \d+ s\b", gaelp("list").stdout)

    done = gaelp("unload", model)
    assert done.exit_code == 0
    assert "which frees" in done.stdout
    eventually(lambda: full not in in_memory(node))
    again = gaelp("unload", model)
    assert (again.exit_code, again.stdout) == (0, f"{model} was not in memory.\n")


@pytest.mark.engine
def test_pulling_what_is_there_is_soon_done_and_what_is_nowhere_is_one_sentence(node, nodes):
    nodes(node)
    code, pulled = told("pull", "tiny")
    assert (code, pulled["pulled"][0]["node"]) == (0, node)
    lines = gaelp("pull", "tiny").stdout.splitlines()
    assert lines[0] == f"{node}: pulling manifest"
    assert lines[-1].startswith(f"{node} has tiny (")
    missing = gaelp("pull", "nowhere")
    assert missing.exit_code == 1
    assert f"{node} cannot pull 'nowhere': pull model manifest" in missing.stderr
    assert len(missing.stderr.splitlines()) <= 3


@pytest.mark.ollama
def test_on_a_real_ollama(real_ollama, nodes):
    nodes(real_ollama)
    names = [row["name"] for row in told("list")[1]["models"]]
    for name in names:
        assert told("warm", name)[0] == 0
        assert name in in_memory(real_ollama)
    freed = {name: told("unload", name)[1]["unloaded"] for name in names}
    assert all(rows[0]["freed_bytes"] > 0 for rows in freed.values())
    eventually(lambda: in_memory(real_ollama) == set())
    assert told("pull", "no-such-model-of-ours")[0] == 1


@pytest.mark.engine
def test_a_node_that_is_away_is_told_and_the_others_are_served(node, nodes):
    nodes(node, GONE)
    for verb in (("list",), ("warm", "tiny"), ("pull", "tiny"), ("unload", "tiny")):
        code, document = told(*verb)
        assert code == 1
        [trouble] = document["troubles"]
        assert trouble["node"] == GONE
        assert "cannot be reached" in trouble["trouble"]
        [rows] = [rows for name, rows in document.items() if name not in {"model", "troubles"}]
        assert {row["node"] for row in rows} == {node}, verb
        assert GONE in gaelp(*verb).stderr
    assert {row["node"] for row in told("list", "--node", node)[1]["models"]} == {node}
    assert told("list", "--node", node)[0] == 0


@pytest.mark.engine
def test_a_model_that_no_node_has_says_how_to_get_it(node, nodes):
    nodes(node)
    for verb in ("warm", "unload"):
        done = gaelp(verb, "nowhere")
        assert done.exit_code == 1
        assert "gaelp models pull nowhere" in " ".join(done.stderr.split())


def test_an_address_that_is_none_is_a_usage_error(nodes):
    nodes(GONE)
    assert gaelp("list", "--node", "localhost").exit_code == 2


def run_of(node, model="", **facts):
    asked = {
        "id": "i",
        "worker": "w",
        "agent": "chat",
        "tier": "batch",
        "attempt": 1,
        "since": 1.0,
        "tokens": 1,
    }
    return Runner(**asked | {"node": node, "model": model} | facts)


@pytest.mark.engine
@pytest.mark.parametrize("busy", [("", "tiny"), ("", ""), ("here", "tiny:latest"), ("here", "")])
def test_a_model_in_use_is_not_unloaded_unless_told_to(node, nodes, monkeypatch, busy):
    nodes(node)
    told("warm", "tiny")
    place, model = busy
    monkeypatch.setattr(models, "runners", lambda *_: [run_of(place and node, model)])
    done = gaelp("unload", "tiny")
    assert done.exit_code == 1
    assert "tiny is in use, or may be, by i: wait" in " ".join(done.stderr.split())
    assert CHAT in in_memory(node)
    assert told("unload", "tiny", "--force")[0] == 0
    eventually(lambda: CHAT not in in_memory(node))


@pytest.mark.engine
@pytest.mark.parametrize("elsewhere", [("http://other", "tiny"), ("here", "tiny-embed:latest")])
def test_runs_elsewhere_or_on_other_models_are_in_nobodys_way(node, nodes, monkeypatch, elsewhere):
    nodes(node)
    told("warm", "tiny")
    place, model = elsewhere
    monkeypatch.setattr(models, "runners", lambda *_: [run_of(node if place == "here" else place, model)])
    assert gaelp("unload", "tiny").exit_code == 0


def test_without_redis_nobody_can_tell_who_runs(nodes, monkeypatch):
    def fail(_):
        raise BrokerUnavailable("Redis is away.")

    nodes(GONE)
    monkeypatch.setattr(models, "live_nodes", fail)
    done = gaelp("unload", "tiny")
    assert isinstance(done.exception, BrokerUnavailable)
    assert "--force" in str(done.exception)


@pytest.fixture
async def server(nodes):
    async with ScriptedServer() as started:
        nodes(started.url, ollama_headers={"X-Key": "k"}, keep_alive_s=60, num_ctx=512)
        yield started


async def test_a_pull_tells_each_tenth_of_all_its_layers(server):
    async def pull(request, reply):
        reply.head()
        reply.line({"status": "pulling manifest"})
        for completed in range(0, 1000, 10):
            reply.line({"status": "pulling a", "digest": "a", "total": 1000, "completed": completed})
        reply.line({"status": "pulling a", "digest": "a", "total": 1000, "completed": 1000})
        reply.line({"status": "pulling b", "digest": "b", "total": 1000})
        reply.line({"status": "success"})
        reply.end()

    server.on("/api/pull", pull)
    done = await asyncio.to_thread(gaelp, "pull", "m")
    assert done.exit_code == 0, done.stderr
    lines = [line.removeprefix(f"{server.url}: ") for line in done.stdout.splitlines()[:-1]]
    tenths = [f"pulling a {percent} %" for percent in range(0, 101, 10)]
    assert lines == ["pulling manifest", *tenths, "pulling b 50 %", "success"]
    [request] = server.asked("/api/pull")
    assert request.json() == {"model": "m", "stream": True}
    assert request.headers["x-key"] == "k"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"error": "no such thing.\nreally"}], "cannot pull 'm': no such thing. really."),
        ([{"status": "pulling"}], "broke off while it pulled 'm'"),
        (["junk"], "does not answer as Ollama does"),
    ],
)
async def test_a_pull_that_fails_says_so_in_one_sentence(server, lines, words):
    async def pull(request, reply):
        reply.head()
        for line in lines:
            reply.line(line)
        reply.end()

    server.on("/api/pull", pull)
    code, document = await asyncio.to_thread(told, "pull", "m")
    assert (code, document["pulled"]) == (1, [])
    assert words in document["troubles"][0]["trouble"]


async def test_a_pull_whose_connection_breaks_says_how_to_go_on(server):
    async def pull(request, reply):
        reply.head()
        reply.line({"status": "pulling"})
        reply.reset()

    server.on("/api/pull", pull)
    _, document = await asyncio.to_thread(told, "pull", "m")
    assert "pull again" in document["troubles"][0]["trouble"]


async def test_a_model_is_loaded_with_the_context_and_for_the_time_of_the_settings(server):
    assert (await asyncio.to_thread(told, "warm", "tiny"))[0] == 0
    [request] = server.asked("/api/generate")
    assert request.json() == {
        "model": CHAT, "keep_alive": 60.0, "options": {"num_ctx": 512}, "stream": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "status"),
    [({"error": "out of memory"}, 500), ("<html>", 200), ({"error": "go away"}, 401), ({}, 302)],
)
async def test_whatever_a_server_answers_becomes_one_sentence(server, answer, status):
    async def reply_so(request, reply):
        reply.whole(answer, status, Location="http://127.0.0.1:9/")

    for path in ("/api/tags", "/api/ps", "/api/pull"):
        server.on(path, reply_so)
    for verb in (("list",), ("warm", "tiny"), ("pull", "m"), ("unload", "tiny")):
        code, document = await asyncio.to_thread(told, *verb)
        assert code == 1
        sentence = document["troubles"][0]["trouble"]
        assert sentence.startswith(server.url)
        assert sentence.endswith(".")
        assert "\n" not in sentence


@pytest.mark.parametrize(
    ("verb", "path", "words"),
    [("pull", "/api/pull", "pulling again goes on from there"), ("warm", "/api/generate", "")],
)
async def test_ctrl_c_leaves_at_once(server, verb, path, words):
    left = asyncio.Event()
    begun = asyncio.Event()

    async def never_end(request, reply):
        reply.head()
        reply.line({"status": "pulling a", "digest": "a", "total": 100, "completed": 1})
        begun.set()
        await reply.gone.wait()
        left.set()

    server.on(path, never_end)
    process = subprocess.Popen(
        [sys.executable, "-m", "gaelp_tasks.cli", "models", verb, "tiny"],
        env={**os.environ, "GAELP_OLLAMA_NODES": server.url, "GAELP_BROKER_URL": "redis://127.0.0.1:9/0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    await asyncio.wait_for(begun.wait(), 30)
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(left.wait(), 10)
    _, said = await asyncio.to_thread(process.communicate, timeout=10)
    assert process.returncode == 130
    assert words in " ".join(said.split())
    assert "Traceback" not in said
