"""`docker/beside.py` with a real Redis: one worker a server, and another one takes over from who is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gaelp_tasks import app
from gaelp_tasks.cli import health
from support.eventually import eventually
from support.ports import free_port

pytestmark = [pytest.mark.redis, pytest.mark.slow]

BESIDE = Path(__file__).parents[2] / "docker/beside.py"
#: stands for the worker: tells what it was given, and ends by SIGTERM
WORKER = """
import os, signal, sys
def stops(*_):
    print("stops", file=log, flush=True)
    sys.exit(3)
log = open(sys.argv[1], "a")
signal.signal(signal.SIGTERM, stops)
print(os.environ["GAELP_OLLAMA_NODES"], os.environ["GAELP_MEMORY_BUDGET"], file=log, flush=True)
while True:
    signal.pause()
"""
#: a container: a name of its own, its part of DNS, and short times
CONTAINER = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
path, name, *command = sys.argv[1:]
spec = spec_from_file_location("beside", path)
beside = module_from_spec(spec)
spec.loader.exec_module(beside)
beside.addresses = lambda asked: {"127.0.0.1"} if asked == "ollama" else set()
beside.socket.gethostname = lambda: name
beside.TTL_S, beside.RENEW_S, beside.LOOK_S, beside.FREE_S = 1.0, 0.2, 0.1, 0.4
beside.main([sys.executable, "-c", *command])
"""


class Container:
    """One of them, with its page; all of its processes can be stopped and go on."""

    def __init__(self, name, folder, broker):
        self.port = free_port()
        self._log = folder / f"{name}.log"
        env = {
            "GAELP_BROKER_URL": broker.url,
            "GAELP_METRICS_PORT": str(self.port),
            "OLLAMA_MEMORY": "8g",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTAINER, str(BESIDE), name, WORKER, str(self._log)],
            env=os.environ | env,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def said(self):
        return self._log.read_text().splitlines() if self._log.exists() else []

    def verdict(self):
        return health.of_worker([], "here", "", health.page("127.0.0.1", self.port))

    def send(self, number):
        os.killpg(self.process.pid, number)

    def end(self):
        if self.process.poll() is None:
            self.send(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def begin(tmp_path, broker):
    app.redis.delete(app.keys.beside("gaelp:ollama"))
    begun = []

    def one(name):
        begun.append(Container(name, tmp_path, broker))
        return begun[-1]

    yield one
    for container in begun:
        container.end()


def test_one_has_the_server_and_another_takes_over_when_it_freezes_or_ends(begin):
    key = app.keys.beside("gaelp:ollama")
    first = begin("one")
    eventually(first.said, what="the first has begun")
    assert first.said() == ["http://ollama:11434 8g"]
    second = begin("two")
    eventually(lambda: second.verdict().well, what="the second stands by, and says so")
    assert not second.said()
    assert app.redis.get(key) == "one"

    first.send(signal.SIGSTOP)
    eventually(second.said, what="the second has taken over from who is frozen")
    assert app.redis.get(key) == "two"
    first.send(signal.SIGCONT)
    assert first.process.wait(10) == 3, "who comes back gives way, and ends as its worker does"
    assert first.said()[-1] == "stops"

    third = begin("three")
    eventually(lambda: third.verdict().well, what="the third stands by")
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(10) == 3, "the signal came to the worker"
    eventually(third.said, what="the third has taken over from who ended")
    assert app.redis.get(key) == "three"

    again = begin("four")
    eventually(lambda: again.verdict().well, what="the fourth stands by")
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(10) == 0
    assert not again.said()
