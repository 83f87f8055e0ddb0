"""The official `ollama` client, unchanged, against the demo model server: tiny models, and once real ones."""

import json
from collections.abc import Iterator

import ollama
import pytest

from gaelp_tasks.demo.weights import fetch_minilm, fetch_smollm2
from support.eventually import eventually
from support.model_server import CHAT_MODEL, EMBED_MODEL, ROOT, ModelServer

pytestmark = pytest.mark.engine

HELLO = [{"role": "user", "content": "hello"}]
SHORT = {"num_predict": 8, "seed": 1}
SCHEMA = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with ModelServer(tmp_path_factory.mktemp("server")) as server:
        yield server.url


@pytest.fixture
def client(url):
    with ollama.Client(url, trust_env=False) as client:
        yield client


def test_chat(client):
    answer = client.chat("tiny", HELLO, options=SHORT)
    assert answer.message.content
    assert answer.message.role == "assistant"
    assert answer.done_reason == "length"
    assert answer.eval_count == 8
    assert answer.total_duration > 0


def test_chat_streamed(client):
    *pieces, last = client.chat("tiny", HELLO, stream=True, options=SHORT)
    assert "".join(piece.message.content for piece in pieces) == (
        client.chat("tiny", HELLO, options=SHORT).message.content
    )
    assert last.done
    assert last.prompt_eval_count > 0


async def test_chat_streamed_by_the_async_client(url):
    async with ollama.AsyncClient(url, trust_env=False) as client:
        pieces = [piece async for piece in await client.chat("tiny", HELLO, stream=True, options=SHORT)]
    assert len(pieces) == 9
    assert pieces[-1].done


def test_chat_without_thinking(client):
    assert client.chat("tiny", HELLO, think=False, options=SHORT).message.content


def test_generate(client):
    answer = client.generate("tiny", "hello", system="Be brief.", options=SHORT)
    assert answer.response
    assert answer.eval_count == 8


def test_generate_raw_and_streamed(client):
    *pieces, last = client.generate("tiny", "The quiet", raw=True, stream=True, options=SHORT)
    assert "".join(piece.response for piece in pieces).startswith(" ")
    assert last.prompt_eval_count == 2


def test_format_json(client):
    json.loads(client.generate("tiny", "hello", format="json", options={"seed": 1}).response)


def test_format_schema(client):
    answer = json.loads(client.chat("tiny", HELLO, format=SCHEMA, options={"seed": 1}).message.content)
    assert isinstance(answer["sure"], bool)


def test_a_python_function_as_a_tool(client):
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the first
            b: the second
        """
        return a + b

    (call,) = client.chat("tiny", HELLO, tools=[add], options={"seed": 1}).message.tool_calls
    assert call.function.name == "add"
    assert isinstance(add(**call.function.arguments), int)


def test_embed_one_and_many(client):
    one = client.embed("tiny-embed", "a red bird")
    many = client.embed("tiny-embed", ["a red bird", "a stone"], dimensions=16)
    assert len(one.embeddings) == 1
    assert [len(vector) for vector in many.embeddings] == [16, 16]
    assert one.prompt_eval_count == 5


def test_legacy_embeddings(client):
    vector = client.embeddings("tiny-embed", "a red bird").embedding
    assert vector == pytest.approx(client.embed("tiny-embed", "a red bird").embeddings[0], abs=1e-5)


def test_list(client):
    models = {model.model: model for model in client.list().models}
    assert set(models) == {CHAT_MODEL, EMBED_MODEL}
    assert models[CHAT_MODEL].size > 0
    assert models[CHAT_MODEL].details.format == "gguf"
    assert models[CHAT_MODEL].modified_at.tzinfo is not None


def test_show(client):
    shown = client.show("tiny")
    assert shown.modelinfo["llama.block_count"] == 2
    assert shown.capabilities == ["completion", "tools"]
    assert shown.details.quantization_level == "F16"
    assert shown.template


def test_load_ps_and_unload(client):
    assert client.generate("tiny", keep_alive=-1).done_reason == "load"
    (loaded,) = [model for model in client.ps().models if model.model == CHAT_MODEL]
    assert loaded.size > 0
    assert loaded.size_vram == 0
    assert loaded.context_length == 2048
    assert loaded.expires_at.year > 2200
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    eventually(lambda: CHAT_MODEL not in {model.model for model in client.ps().models})


def test_pull_of_a_known_model(client):
    assert client.pull("tiny").status == "success"
    assert [step.status for step in client.pull("tiny", stream=True)][-1] == "success"


@pytest.mark.parametrize("stream", [False, True])
def test_pull_of_an_unknown_model(client, stream):
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        for _ in client.pull("nobody", stream=stream):
            pass


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_404(client, stream):
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        list(client.chat("nobody", HELLO, stream=stream))
    assert caught.value.status_code == 404


@pytest.mark.smollm2
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_weights_talk_call_and_embed(tmp_path):
    cache = ROOT / ".cache" / "models"
    models = {"smollm2:135m": fetch_smollm2(cache), "all-minilm": fetch_minilm(cache)}
    with ModelServer(tmp_path, models=models) as server, ollama.Client(server.url, trust_env=False) as client:
        question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
        *pieces, last = client.chat("smollm2:135m", question, stream=True, options={"num_predict": 32})
        assert "".join(piece.message.content for piece in pieces).strip()
        assert last.eval_count <= 32

        sure = client.chat(
            "smollm2:135m", question, format=SCHEMA, options={"num_predict": 64}
        ).message.content
        assert isinstance(json.loads(sure)["sure"], bool)

        tool = {
            "type": "function",
            "function": {
                "name": "add",
                "description": "Add two numbers",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "required": ["a", "b"],
                },
            },
        }
        adding = [{"role": "user", "content": "Add 17 and 25."}]
        (call,) = client.chat(
            "smollm2:135m", adding, tools=[tool], options={"temperature": 0}
        ).message.tool_calls
        assert call.function.name == "add"
        assert set(call.function.arguments) == {"a", "b"}

        texts = ["A cat sits on the mat.", "A feline rests upon a rug.", "Celery is a task queue in Python."]
        cat, feline, celery = client.embed("all-minilm", texts).embeddings
        assert len(cat) == 384
        assert dot(cat, feline) > dot(cat, celery) + 0.3

        shown = client.show("smollm2:135m")
        assert shown.modelinfo["llama.attention.head_count_kv"] == 3
        assert shown.details.quantization_level == "Q4_1"


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))
