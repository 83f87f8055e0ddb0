"""The demo model server as a process of its own, with the real engine and tiny models."""

import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from gaelp_tasks.demo.tiny_model import write_tiny_chat_model
from support.eventually import eventually
from support.model_server import (
    CHAT_MODEL,
    EMBED_MODEL,
    ROOT,
    ModelServer,
    is_running,
    slow_model,
    tiny_models,
)

pytestmark = pytest.mark.engine

SLOW, ENDING = "slow:latest", "ending:latest"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of some days",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]},
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        **tiny_models(folder),
        SLOW: slow_model(folder),
        ENDING: write_tiny_chat_model(folder / "ending.gguf", sentences=3),
    }


@pytest.fixture(scope="module")
def server(models, tmp_path_factory) -> Iterator[ModelServer]:
    with ModelServer(tmp_path_factory.mktemp("server"), models=models) as running:
        yield running


def chat(content="hello", *, model=CHAT_MODEL, stream=False, options=None, **fields):
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "stream": stream,
        "options": {"num_predict": 12, "seed": 1} if options is None else options,
        **fields,
    }


def parts(response):
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.iter_lines()]


def text_of(answer):
    return answer["message"]["content"]


# --- writing


def test_a_streamed_chat_is_ndjson_and_says_what_the_whole_one_says(server):
    *pieces, last = parts(server.post("/api/chat", chat(stream=True), stream=True))
    whole = server.post("/api/chat", chat()).json()
    assert len(pieces) == 12
    assert all(piece["message"]["role"] == "assistant" and not piece["done"] for piece in pieces)
    assert "".join(text_of(piece) for piece in pieces) == text_of(whole)
    for answer in (last, whole):
        assert answer["done"]
        assert answer["done_reason"] == "length"
        assert answer["eval_count"] == 12
        assert answer["prompt_eval_count"] > 0
        assert answer["total_duration"] >= answer["eval_duration"] > 0
        assert answer["model"] == CHAT_MODEL


def test_the_stream_is_the_default(server):
    body = chat()
    del body["stream"]
    assert len(parts(server.post("/api/chat", body))) == 13


def test_the_text_is_words_of_whole_characters(server):
    text = text_of(server.post("/api/chat", chat(options={"num_predict": 400, "seed": 5})).json())
    assert "\ufffd" not in text
    assert {word.strip(".!?") for word in text.split()} & {"the", "café", "naïve", "river", "bird"}
    assert "." in text or "!" in text or "?" in text


def test_the_same_seed_gives_the_same_text_alone_and_in_parallel(server):
    body = chat(options={"num_predict": 40, "seed": 3})
    alone = text_of(server.post("/api/chat", body).json())
    with ThreadPoolExecutor(4) as pool:
        together = [answer.json() for answer in pool.map(lambda _: server.post("/api/chat", body), range(8))]
    assert {text_of(answer) for answer in together} == {alone}


def test_the_text_depends_on_the_first_word_of_the_prompt(server):
    ask = chat("river stone", options={"num_predict": 60, "temperature": 0})
    other = chat("garden stone", options={"num_predict": 60, "temperature": 0})
    assert text_of(server.post("/api/chat", ask).json()) != text_of(server.post("/api/chat", other).json())


def test_a_cut_text_goes_on_where_it_was_cut(server):
    def generate(prompt, tokens):
        body = {"model": CHAT_MODEL, "prompt": prompt, "raw": True, "stream": False}
        return server.post(
            "/api/generate", {**body, "options": {"temperature": 0, "num_predict": tokens}}
        ).json()

    whole = generate("The quiet", 30)["response"]
    first = generate("The quiet", 11)["response"]
    assert whole == first + generate(f"The quiet{first}", 19)["response"]


def test_a_model_that_ends_by_itself_says_stop(server):
    answer = server.post("/api/chat", chat(model=ENDING, options={"num_predict": 1500, "seed": 2})).json()
    assert answer["done_reason"] == "stop"
    assert text_of(answer)[-1] in ".!?"


def test_a_stop_word_ends_the_text_before_it(server):
    everything = text_of(server.post("/api/chat", chat()).json())
    word = everything.split()[3]
    answer = server.post("/api/chat", chat(options={"num_predict": 12, "seed": 1, "stop": [word]})).json()
    assert answer["done_reason"] == "stop"
    assert text_of(answer) == everything[: everything.index(word)]


def test_a_json_schema_is_kept(server):
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "count": {"type": "integer"}},
        "required": ["mood", "count"],
    }
    answer = json.loads(text_of(server.post("/api/chat", chat(format=schema, options={})).json()))
    assert answer["mood"] in {"good", "bad"}
    assert isinstance(answer["count"], int)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "if": {}, "then": {}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"not": {"type": "string"}},
    ],
)
def test_a_schema_that_is_only_half_understood_still_gives_json(server, schema):
    json.loads(text_of(server.post("/api/chat", chat(format=schema, options={"seed": 4})).json()))


def test_a_tool_is_called_with_an_object(server):
    answer = server.post("/api/chat", chat(tools=[WEATHER], options={"seed": 1})).json()
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert isinstance(call["function"]["arguments"]["days"], int)
    assert text_of(answer) == ""


def test_a_streamed_tool_call_comes_in_one_piece(server):
    first, last = parts(server.post("/api/chat", chat(tools=[WEATHER], options={"seed": 1}, stream=True)))
    assert first["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert not first["done"]
    assert last["done"]


def test_generate_takes_a_system_prompt_and_raw_takes_none(server):
    def count(**fields):
        body = {
            "model": CHAT_MODEL,
            "prompt": "hello",
            "stream": False,
            "options": {"num_predict": 1},
            **fields,
        }
        return server.post("/api/generate", body).json()["prompt_eval_count"]

    assert count(raw=True) == len("hello")
    assert count(raw=True) < count() < count(system="Be brief.")


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_system(server):
    turns = [{"role": role, "content": "x" * 900} for role in ("system", "user", "assistant", "user")]
    answer = server.post("/api/chat", {**chat(), "messages": turns}).json()
    assert 1800 < answer["prompt_eval_count"] < 2048


@pytest.mark.parametrize("fields", [{}, {"truncate": False}])
def test_a_prompt_that_cannot_fit_is_400(server, fields):
    answer = server.post("/api/chat", chat("x" * 2100, **fields))
    assert answer.status_code == 400
    assert "shorten the prompt" in answer.json()["error"]


# --- embedding


def embed(server, **fields):
    answer = server.post("/api/embed", {"model": EMBED_MODEL, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["embeddings"]


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_embeddings_are_unit_vectors_and_near_for_shared_words(server):
    bird, birds, stone = embed(server, input=["the red bird", "a red bird", "some pale stone"])
    assert dot(bird, bird) == pytest.approx(1, abs=1e-5)
    assert dot(bird, birds) > dot(bird, stone) + 0.2


def test_a_batch_equals_its_texts_one_by_one(server):
    texts = [f"the {word}" for word in ("river", "bird", "stone", "café") for _ in range(6)]
    batch = embed(server, input=texts)
    assert len(batch) == 24
    for text, vector in zip(texts[::6], batch[::6], strict=True):
        assert dot(vector, embed(server, input=text)[0]) == pytest.approx(1, abs=1e-4)


def test_a_long_text_is_cut_to_the_context(server):
    (long,) = embed(server, input="bird " * 1000)
    (whole,) = embed(server, input="bird " * 254)
    assert dot(long, whole) == pytest.approx(1, abs=1e-4)


def test_a_long_text_is_400_where_cutting_is_forbidden(server):
    answer = server.post("/api/embed", {"model": EMBED_MODEL, "input": "bird " * 1000, "truncate": False})
    assert answer.status_code == 400
    assert "exceeds the context length" in answer.json()["error"]


def test_fewer_dimensions_are_a_unit_vector_again(server):
    (vector,) = embed(server, input="bird", dimensions=5)
    assert len(vector) == 5
    assert dot(vector, vector) == pytest.approx(1)


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


# --- stopping


PROMPTS = {"while it generates": "hello", "while it reads": "what is all this? " * 105}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("when", PROMPTS)
def test_a_hang_up_stops_the_model(server, when, stream):
    # another beginning each time, or the engine would remember the prompt and skip the reading
    body = chat(f"{when} {stream} {PROMPTS[when]}", model=SLOW, stream=stream, options={"num_predict": 1900})
    server.post("/api/generate", {"model": SLOW})
    with hanging_up(server, "/api/chat", body):
        eventually(lambda: server.slots(SLOW)["processing"] == 1, what="the engine has begun")
        assert server.slots(SLOW)["busy"] == 1
    eventually(lambda: server.slots(SLOW)["busy"] == 0, within_s=1, what="the seat is free")
    # The whole answer would take minutes on a busy machine; a batch of 128 tokens takes a second there.
    eventually(lambda: server.is_idle(SLOW), within_s=10, what="the engine has stopped")


def test_a_queued_request_that_hangs_up_leaves_the_queue(models, tmp_path):
    with ModelServer(tmp_path, models={SLOW: models[SLOW]}, num_parallel=1, max_queue=1) as server:
        body = chat(model=SLOW, options={"num_predict": 1900})
        with hanging_up(server, "/api/chat", body):
            eventually(lambda: server.slots(SLOW)["busy"] == 1)
            with hanging_up(server, "/api/chat", body):
                eventually(lambda: server.slots(SLOW)["waiting"] == 1)
                refused = server.post("/api/chat", body)
                assert refused.status_code == 503
                assert refused.json()["error"].startswith("server busy, please try again.")
            eventually(lambda: server.slots(SLOW)["waiting"] == 0)
            assert server.slots(SLOW)["busy"] == 1
        eventually(lambda: server.is_idle(SLOW), what="the engine has stopped")


def test_first_requests_at_once_share_one_load(models, tmp_path):
    with (
        ModelServer(tmp_path, models={CHAT_MODEL: models[CHAT_MODEL]}) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda _: server.post("/api/chat", chat()).json(), range(8)))
        assert [answer["eval_count"] for answer in answers] == [12] * 8
        assert len(server.engines()) == 1


def test_a_load_goes_on_when_its_first_request_hangs_up(models, tmp_path):
    with ModelServer(tmp_path, models={SLOW: models[SLOW]}) as server:
        with hanging_up(server, "/api/chat", chat(model=SLOW)):
            eventually(server.engines)
        (engine,) = server.engines()
        assert server.post("/api/chat", chat(model=SLOW)).json()["eval_count"] == 12
        assert server.engines() == [engine]


def test_an_engine_that_dies_ends_the_stream_with_an_error_line_and_comes_back(server):
    server.post("/api/generate", {"model": SLOW})
    before = server.engines()
    server.post("/api/generate", {"model": SLOW, "keep_alive": 0})
    eventually(lambda: len(server.engines()) == len(before) - 1)
    others = server.engines()
    body = chat(model=SLOW, stream=True, options={"num_predict": 1900})
    with server.post("/api/chat", body, stream=True) as response:
        lines = response.iter_lines()
        assert not json.loads(next(lines))["done"]
        (engine,) = [engine for engine in server.engines() if engine not in others]
        engine.kill()
        *_, last = lines
    assert "stopped unexpectedly" in json.loads(last)["error"]
    assert server.post("/api/chat", chat(model=SLOW)).json()["eval_count"] == 12


def test_a_model_that_cannot_be_loaded_is_500_and_harms_no_other(models, tmp_path):
    whole = models[CHAT_MODEL].read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[: len(whole) // 2])
    with ModelServer(tmp_path, models={"broken": broken, CHAT_MODEL: models[CHAT_MODEL]}) as server:
        for _ in range(2):
            answer = server.post("/api/chat", chat(model="broken"))
            assert answer.status_code == 500
            assert "could not be loaded" in answer.json()["error"]
        assert server.slots("broken:latest")["busy"] == 0
        assert server.post("/api/chat", chat()).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_the_server_ends_its_engines_end_too(models, tmp_path, number):
    with ModelServer(tmp_path, models={SLOW: models[SLOW]}) as server:
        body = chat(model=SLOW, options={"num_predict": 1900})
        with hanging_up(server, "/api/chat", body):
            eventually(lambda: server.slots(SLOW)["processing"] == 1)
            (engine,) = server.engines()
            assert is_running(engine)
            code = server.stop(number)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert not is_running(engine)
    assert "Traceback" not in server.log()


# --- starting


def start(*arguments):
    command = [sys.executable, "-m", "gaelp_tasks.demo.model_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def test_ollamas_port_is_refused(models):
    done = start("--port", "11434", "--model", f"tiny={models[CHAT_MODEL]}")
    assert done.returncode == 2
    assert (
        done.stderr == "error: port 11434 belongs to a real Ollama; give another one, or 0 for any free one\n"
    )


def test_a_port_in_use_is_told_in_one_sentence(models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start("--port", str(port), "--model", f"tiny={models[CHAT_MODEL]}")
    assert done.returncode == 2
    assert done.stderr == f"error: port {port} of 127.0.0.1 cannot be used: Address already in use\n"


@pytest.mark.parametrize("model", ["tiny", "tiny=", "tiny=/nowhere/x.gguf", f"tiny={__file__}"])
def test_a_model_that_is_none_is_told_in_one_sentence(model):
    done = start("--model", model)
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: --model "{model}" ')
    assert done.stderr.count("\n") == 1


class hanging_up:  # noqa: N801  reads as a verb
    """Send a request over a socket of our own; leaving closes it with a reset."""

    def __init__(self, server, path, body):
        host, port = server.url.removeprefix("http://").split(":")
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(content)}\r\n\r\n"
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.sendall(head.encode() + content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
