"""Callers that hang up, engines that die, servers that end or do not start."""

import json
import signal
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.chats import SLOW, chat
from support.eventually import eventually
from support.model_server import CHAT_MODEL, ROOT, ModelServer, is_running

pytestmark = pytest.mark.engine


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
