"""psutil's door: the host's memory, what is on this machine, and what a server's processes hold."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from gaelp_workers.probes import host
from gaelp_workers.probes.host import Server, host_memory, own_names, port_here

NAMES = frozenset({"localhost", "gpu-1", "10.0.0.7", "fe80::1"})
#: a server that touches memory, and a runner of it that touches more; both say that they did
SERVER = """
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
mine = bytearray(b"x" * (20 << 20))
runner = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=sys.stdin, stdout=subprocess.PIPE)
runner.stdout.readline()
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""
RUNNER = "import sys; held = bytearray(b'x' * (60 << 20)); print('up', flush=True); sys.stdin.read()"


def test_the_hosts_memory_is_measured():
    memory = host_memory()
    assert 0 < memory.free_bytes <= memory.total_bytes
    assert memory.source == "host"


def test_more_available_than_there_is_is_all_of_it(monkeypatch):
    """Some containers are told so."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10, available=12))
    assert host_memory().free_bytes == 10


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://127.0.0.1:11434", 11434),
        ("http://127.9.9.9:1/ollama", 1),
        ("http://localhost:5", 5),
        ("http://LOCALHOST", 80),
        ("https://localhost", 443),
        ("http://[::1]:11434", 11434),
        ("http://0.0.0.0:11434", 11434),
        ("http://GPU-1:11434", 11434),
        ("http://10.0.0.7:11434", 11434),
        ("http://[fe80::1]:9", 9),
        ("http://ollama:11434", None),
        ("http://10.0.0.8:11434", None),
        ("http://gpu-10:11434", None),
        ("http://host.docker.internal:11434", None),
        ("scripted", None),
        ("", None),
    ],
)
def test_an_address_is_here_or_elsewhere(url, port):
    assert port_here(url, NAMES) == port


def test_this_machine_knows_its_names():
    names = own_names()
    assert {"localhost", socket.gethostname().lower(), "127.0.0.1"} <= names


@pytest.fixture
def served():
    """A port, and the process that serves it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield int(process.stdout.readline()), process
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def test_the_server_and_its_runners_are_found_by_the_port_and_counted_together(served):
    port, process = served
    server = Server(port)
    assert (server.pid, server.held_bytes) == (None, None), "nothing is known before the first look"
    server.look()
    assert server.pid == process.pid
    assert 80 << 20 <= server.held_bytes < 200 << 20


def test_a_server_that_ended_holds_nothing_and_one_that_came_is_found(served):
    port, process = served
    server = Server(port)
    server.look()
    process.stdin.close()
    process.wait(10)
    server.look()
    assert (server.pid, server.held_bytes) == (None, None)
    with socket.create_server(("127.0.0.1", port)):
        server.look()
    assert server.pid == os.getpid()
    assert server.held_bytes > 0


def test_a_server_that_was_started_anew_is_found_at_the_next_look(served):
    port, process = served
    server = Server(port)
    server.look()
    process.stdin.close()
    process.wait(10)
    with socket.create_server(("127.0.0.1", port)):
        server.look()
    assert server.pid == os.getpid()


def test_who_only_passes_connections_on_is_not_the_server(served, monkeypatch):
    port, process = served
    monkeypatch.setattr(host, "FORWARDERS", {psutil.Process(process.pid).name()})
    server = Server(port)
    server.look()
    assert (server.pid, server.held_bytes) == (None, None)


def test_a_port_that_nobody_listens_on_has_no_server():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = Server(bound.getsockname()[1])
        server.look()
    assert (server.pid, server.held_bytes) == (None, None)


@pytest.mark.parametrize("error", [psutil.AccessDenied(), OSError("no /proc")])
def test_what_is_not_for_us_to_see_is_none_and_no_error(served, monkeypatch, error):
    port, _ = served

    def refuse(*_):
        raise error

    monkeypatch.setattr(psutil, "net_connections", refuse)
    server = Server(port)
    server.look()
    assert (server.pid, server.held_bytes) == (None, None)


def test_a_server_whose_memory_is_hidden_is_none_and_no_error(served, monkeypatch):
    port, _ = served

    def refuse(_):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "memory_info", refuse)
    server = Server(port)
    server.look()
    assert server.held_bytes is None
