"""What the model server tells of its models, and what it refuses."""

import pytest
import requests

from support.chats import ENDING, chat
from support.eventually import eventually
from support.model_server import CHAT_MODEL, EMBED_MODEL

pytestmark = pytest.mark.engine


# --- what it has


def test_it_says_what_it_is_and_how_many_it_runs_at_once(server):
    assert "stand-in for Ollama" in requests.get(server.url, timeout=10).text
    version = server.get("/api/version")
    assert version["version"].startswith("0.0.0")
    assert version["num_parallel"] == 4


def test_show_tells_the_sizes_and_empties_long_arrays_unless_verbose(server):
    shown = server.post("/api/show", {"model": "tiny"}).json()
    verbose = server.post("/api/show", {"model": "tiny", "verbose": True}).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["llama.attention.head_count_kv"] == 2
    assert shown["model_info"]["tokenizer.ggml.tokens"] == []
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) > 256
    assert server.post("/api/show", {"model": EMBED_MODEL}).json()["capabilities"] == ["embedding"]


def test_tags_gives_file_sizes(server, models):
    sizes = {model["name"]: model["size"] for model in server.get("/api/tags")["models"]}
    assert sizes == {name: path.stat().st_size for name, path in models.items()}


def test_an_empty_prompt_loads_and_keep_alive_0_unloads(server):
    loaded = server.post("/api/generate", {"model": ENDING, "stream": False}).json()
    assert loaded["done_reason"] == "load"
    (model,) = [model for model in server.get("/api/ps")["models"] if model["name"] == ENDING]
    assert model["size"] > 10_000_000
    assert model["size_vram"] == 0
    assert model["context_length"] == 2048
    engines = len(server.engines())
    unloaded = server.post("/api/generate", {"model": ENDING, "stream": False, "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "unload"
    eventually(lambda: len(server.engines()) == engines - 1, what="the engine's process has ended")
    assert ENDING not in {model["name"] for model in server.get("/api/ps")["models"]}


def test_a_model_leaves_when_its_keep_alive_is_over(server):
    server.post("/api/chat", chat(model=ENDING, keep_alive="200ms"))
    eventually(lambda: ENDING not in {model["name"] for model in server.get("/api/ps")["models"]})


# --- refusals


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/api/chat", {"model": "no"}, 404, 'model "no" not found, try pulling it first'),
        ("/api/show", {"model": "no"}, 404, 'model "no" not found, try pulling it first'),
        ("/api/pull", {"model": "no"}, 404, "does not exist"),
        ("/api/chat", {"model": 1}, 400, "invalid model"),
        ("/api/chat", chat(think=True), 400, "does not support thinking"),
        ("/api/chat", chat(model=EMBED_MODEL), 400, "it is an embedding model"),
        ("/api/embed", {"model": CHAT_MODEL, "input": "x"}, 400, "it is a chat model"),
        ("/api/chat", chat(format={"type": "nonsense"}), 400, "unrecognized type nonsense"),
        ("/api/chat", chat(format={"$ref": "#/nowhere"}), 400, "cannot resolve $ref"),
        ("/api/create", {}, 404, "stand-in"),
        ("/api/tags", {}, 405, "stand-in"),
    ],
)
def test_a_refusal_has_its_status_and_a_sentence(server, path, body, status, sentence):
    answer = server.post(path, body)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


def test_images_are_refused(server):
    seen = {"role": "user", "content": "what is this", "images": ["aGVsbG8="]}
    answer = server.post("/api/chat", {"model": CHAT_MODEL, "messages": [seen]})
    assert answer.status_code == 400
    assert "does not support images" in answer.json()["error"]


def test_a_huge_body_is_413(server):
    answer = server.post("/api/chat", chat("x" * 9_000_000))
    assert answer.status_code == 413
    assert "larger than" in answer.json()["error"]


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_other_origins_and_other_names_are_refused(server, headers):
    answer = requests.get(server.url + "/api/tags", headers=headers, timeout=10)
    assert answer.status_code == 403
