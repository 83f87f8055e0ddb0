"""A run that is interrupted goes on from its text: real workers, a real engine, readers who saw it begin."""

import signal
import threading
from typing import Any

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.clients import LocalOllamaClient
from gaelp_tasks.demo.weights import fetch_smollm2
from gaelp_tasks.errors import StreamRestarted
from gaelp_tasks.streams import Pause, Start, parse
from gaelp_tasks.tasks.resuming import probe
from support.eventually import eventually
from support.model_server import CHAT_MODEL, ROOMY, ModelServer, slow_model

pytestmark = [pytest.mark.redis, pytest.mark.engine]

SLOW = "slow:latest"
#: So many tokens of this prompt have no word that is nearly as likely as the one that comes. An engine rounds
#: otherwise when it reads a text as a prompt than when it writes it, and that may decide between such two.
PROMPT = "A long story"
EXACT = {"temperature": 0, "num_predict": 260, "seed": 5}
HASTY = {"GAELP_DRAIN_GRACE_S": "0", "GAELP_LEASE_TTL_S": "2", "GAELP_NUM_CTX": str(ROOMY)}
SOME = 10  #: pieces that a reader has when the worker goes


class Reader(threading.Thread):
    """Reads a stream from its beginning to its end, or to an error."""

    def __init__(self, handle: Any) -> None:
        super().__init__(daemon=True)
        self.pieces: list[str] = []
        self.error: Exception | None = None
        self._handle = handle

    def run(self) -> None:
        try:
            for piece in self._handle.stream(timeout=60):
                self.pieces.append(piece)
        except Exception as error:  # noqa: BLE001  the test looks at it
            self.error = error

    def text(self) -> str:
        """All of it, once it has ended."""
        self.join(60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return "".join(self.pieces)


def events(handle):
    entries: Any = app.redis.xrange(app.keys.stream(handle.id))
    return [parse(*entry) for entry in entries]


def starts(handle):
    return [event for event in events(handle) if isinstance(event, Start)]


@pytest.fixture(scope="module")
def slow_node(tmp_path_factory):
    """URL of a model server whose only model takes some seconds for its text."""
    folder = tmp_path_factory.mktemp("slow")
    with ModelServer(folder, models={SLOW: slow_model(folder)}, num_ctx=ROOMY, num_parallel=2) as server:
        yield server.url


def begin(**asked):
    """An invocation, and one who reads it from the beginning and has some text."""
    handle = invoke_agent.delay(PROMPT, tier="background", **asked)
    reader = Reader(handle)
    reader.start()
    eventually(lambda: len(reader.pieces) >= SOME)
    return handle, reader


def test_over_a_stop_and_a_crash_it_is_the_text_of_one_run(start_worker, slow_node):
    first = start_worker(GAELP_OLLAMA_NODES=slow_node, name="first", **HASTY)
    alone = invoke_agent.delay(PROMPT, options=EXACT).get(timeout=60)
    handle, reader = begin(options=EXACT)
    first.send(signal.SIGTERM)
    assert first.wait(within_s=20) == 0
    so_far = len(reader.pieces)
    assert isinstance(events(handle)[-1], Pause)

    second = start_worker(GAELP_OLLAMA_NODES=slow_node, name="second", **HASTY)
    eventually(lambda: len(reader.pieces) >= so_far + SOME)
    second.send(signal.SIGKILL)
    second.wait(within_s=5)
    start_worker(GAELP_OLLAMA_NODES=slow_node, name="third", **HASTY)

    result = handle.get(timeout=60)
    assert [(start.resumes, start.first) for start in starts(handle)] == [(False, 1), (True, 1), (True, 1)]
    assert (result["text"], result["stop_reason"]) == (alone["text"], "length")
    assert result["usage"] == alone["usage"]
    assert reader.text() == result["text"]
    assert "".join(handle.stream(timeout=10)) == result["text"], "who comes late sees the whole, too"


def test_what_has_a_format_starts_over_and_its_reader_is_told(start_worker, slow_node):
    first = start_worker(GAELP_OLLAMA_NODES=slow_node, name="first", **HASTY)
    votes = {"type": "array", "items": {"enum": ["yes", "no"]}, "minItems": 60}
    handle, reader = begin(model=SLOW, format=votes, options=EXACT)
    first.send(signal.SIGTERM)
    assert first.wait(within_s=20) == 0
    start_worker(GAELP_OLLAMA_NODES=slow_node, name="second", **HASTY)
    with pytest.raises(StreamRestarted):
        reader.text()
    result = handle.get(timeout=60)
    assert "".join(handle.stream(timeout=10)) == result["text"]
    assert not any(start.resumes for start in starts(handle))


async def test_the_tiny_model_goes_on_exactly(node):
    async with LocalOllamaClient(api_base=node) as client:
        assert await probe(client, CHAT_MODEL)


@pytest.mark.smollm2
async def test_so_does_the_real_small_model(pytestconfig, tmp_path):
    cache = pytestconfig.rootpath / ".cache" / "models"
    with ModelServer(tmp_path, models={"smollm2:135m": fetch_smollm2(cache)}) as server:
        async with LocalOllamaClient(api_base=server.url) as client:
            assert await probe(client, "smollm2:135m")
