import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from support import real_ollama


class Kitchen(ThreadingHTTPServer):
    """Answers the two calls that make a model and remembers what it was given."""

    def __init__(self, *, has_blob, steps):
        super().__init__(("127.0.0.1", 0), Handler)
        self.has_blob, self.steps, self.blobs, self.created = has_blob, steps, [], []


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(200 if self.server.has_blob else 404, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/create":
            self.server.created.append(json.loads(body))
            self.answer(200, "".join(json.dumps(step) + "\n" for step in self.server.steps).encode())
        else:
            self.server.blobs.append((self.path, body))
            self.answer(201, b"")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def kitchen():
    started = []

    def start(*, has_blob=False, steps=({"status": "writing manifest"}, {"status": "success"})):
        server = Kitchen(has_blob=has_blob, steps=steps)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def gguf(tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF tiny")
    return file


def create(server, gguf):
    url = f"http://127.0.0.1:{server.server_port}"
    return real_ollama.main(["create", "--gguf", str(gguf), "--name", "tiny:1", "--url", url])


def test_a_model_is_made_from_the_uploaded_weights(kitchen, gguf):
    server = kitchen()
    assert create(server, gguf) == 0
    [(path, body)] = server.blobs
    [wanted] = server.created
    assert body == b"GGUF tiny"
    assert path == f"/api/blobs/{wanted['files']['tiny.gguf']}"
    assert wanted["model"] == "tiny:1"
    assert "<|im_end|>" in wanted["parameters"]["stop"]


def test_weights_the_server_has_are_not_sent_again(kitchen, gguf):
    server = kitchen(has_blob=True)
    assert create(server, gguf) == 0
    assert server.blobs == []


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [(({"error": "no GGUF"},), "no GGUF"), (({"status": "parsing GGUF"},), "without saying success")],
)
def test_a_creation_that_does_not_succeed_is_told_in_one_sentence(kitchen, gguf, capsys, steps, sentence):
    assert create(kitchen(steps=steps), gguf) == 3
    assert sentence in capsys.readouterr().err


def test_missing_weights_are_told_in_one_sentence(kitchen, tmp_path, capsys):
    assert create(kitchen(), tmp_path / "none.gguf") == 3
    assert "none.gguf" in capsys.readouterr().err
