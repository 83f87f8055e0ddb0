"""A real memory cgroup: what is announced of a server inside follows its limit, not the host's memory."""

import json
import os
import subprocess
import sys

import pytest

from gaelp_tasks.settings import Settings
from gaelp_workers.memory import memory_of
from gaelp_workers.probes.cgroups import Cgroup
from gaelp_workers.probes.host import host_memory
from support.cgroups import MemoryGroup
from support.eventually import eventually

MIB = 1024**2
LIMIT = 256 * MIB
#: joins the cgroup, refuses every question, and takes and gives back memory as it is told, line by line
INSIDE = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
Path(sys.argv[1]).write_text("0")
BaseHTTPRequestHandler.log_message = lambda *_: None
server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
held, file = bytearray(), Path(sys.argv[2])
for line in sys.stdin:
    kind, size = json.loads(line)
    if kind == "touch":
        held = bytearray(b"x" * size)
    else:
        file.write_bytes(b"x" * size)
    print("done", flush=True)
"""


@pytest.fixture
def cgroup():
    try:
        group = MemoryGroup(LIMIT)
    except OSError as error:
        pytest.skip(f"this machine lets no memory cgroup be made: {error}")
    with group:
        yield group.layout, group.directory


class Inside:
    """A server inside the cgroup."""

    def __init__(self, directory, file):
        self.process = subprocess.Popen(
            [sys.executable, "-c", INSIDE, str(directory / "cgroup.procs"), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.process.stdout.readline())

    def do(self, kind, size):
        self.process.stdin.write(f"{json.dumps([kind, size])}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def inside(cgroup, tmp_path):
    made = Inside(cgroup[1], tmp_path / "pages")
    yield made
    made.process.stdin.close()
    made.process.wait(10)
    made.process.stdout.close()


def test_a_server_in_a_cgroup_is_bounded_by_its_limit_though_the_worker_is_outside(cgroup, inside):
    layout, _ = cgroup
    assert host_memory().free_bytes > LIMIT
    measure = memory_of(Settings())(f"http://127.0.0.1:{inside.port}")
    eventually(lambda: measure(()).held_bytes, what="the server's process is found")
    said = measure(()).memory
    assert (said.source, said.total_bytes) == (layout.name, LIMIT)
    assert LIMIT - 40 * MIB < said.free_bytes < LIMIT


@pytest.mark.redis
def test_a_worker_announces_what_is_left_in_the_cgroup_of_its_server(cgroup, inside, start_worker):
    layout, _ = cgroup
    url = f"http://127.0.0.1:{inside.port}"
    worker = start_worker(GAELP_OLLAMA_NODES=url)

    def announced():
        node = worker.announced().get(url)
        return node if node and node.memory.source == layout.name and node.held_bytes else None

    before = eventually(announced, within_s=20, what="the server's cgroup is announced")
    assert before.memory.total_bytes == LIMIT
    inside.do("touch", 100 * MIB)
    eventually(
        lambda: (now := announced()) and now.memory.free_bytes < before.memory.free_bytes - 90 * MIB,
        what="what the server took is missing",
    )
    eventually(
        lambda: (now := announced()) and now.held_bytes > before.held_bytes + 90 * MIB,
        within_s=20,
        what="the server is seen to hold it",
    )
    assert inside.process.poll() is None


def test_what_is_taken_inside_is_missed_and_what_is_given_back_returns(cgroup, inside):
    layout, _ = cgroup
    probe = Cgroup(layout, pid=lambda: inside.process.pid)
    before = probe().free_bytes
    inside.do("touch", 100 * MIB)
    taken = before - probe().free_bytes
    assert 95 * MIB < taken < 115 * MIB
    inside.do("touch", 0)
    assert before - probe().free_bytes < 10 * MIB


def test_a_file_that_was_only_written_takes_nothing_for_the_kernel_gives_it_up(cgroup, inside):
    layout, directory = cgroup
    probe = Cgroup(layout, pid=lambda: inside.process.pid)
    before = probe().free_bytes
    inside.do("write", 100 * MIB)
    os.sync()
    used = int((directory / layout.used).read_text())
    if used < 60 * MIB:
        pytest.skip("files are written to no page cache here")
    assert before - probe().free_bytes < 40 * MIB
