"""Clients that do not behave, against a real `gaelp api`: they are cut off, and others notice nothing."""

import resource
import shutil
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from gaelp_tasks.api.protocol import MOST_HEAD_BYTES, MOST_WASTED_BYTES
from gaelp_tasks.models.caller import Role
from support.api_server import ApiServer
from support.eventually import eventually

pytestmark = [pytest.mark.redis]

FEW, MANY = 60, 900
HEAD = b"GET /health HTTP/1.1\r\nHost: api\r\n"
MIB = 1024**2


@pytest.fixture(scope="module")
def api_server(broker, newest_tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("impatient")
    shutil.copy(newest_tables, folder / "api.db")
    with ApiServer(folder, GAELP_API_HEAD_TIMEOUT_S="1") as server:
        yield server


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def rest_of(sock):
    """All that the other side still says before it hangs up."""
    said = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionError:
            return said
        if not piece:
            return said
        said += piece


def files_of(server):
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def memory_of(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def well(server):
    """Others are served, and soon."""
    began = time.monotonic()
    assert requests.get(f"{server.url}/health", timeout=10).ok
    return time.monotonic() - began


def half_open(server, count):
    """Connections that say nothing, half a head, or go on without end after their first request; all end."""
    before = files_of(server)
    with ExitStack() as stack:
        socks = [stack.enter_context(connected(server)) for _ in range(count)]
        for number, sock in enumerate(socks):
            if number % 3 == 1:
                sock.sendall(HEAD)
            elif number % 3 == 2:
                sock.sendall(HEAD + b"\r\n")
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
                sock.sendall(b"\r\n")
        took_s = well(server)
        for sock in socks:
            assert b" 200 " not in rest_of(sock)
    eventually(lambda: files_of(server) <= before + 5, what="their files are closed")
    return took_s


def test_connections_that_stay_half_open_end_and_do_no_harm(api_server):
    assert half_open(api_server, FEW) < 5


def test_nine_hundred_connections_that_stay_half_open(broker, tmp_path, request):
    if not request.config.getoption("--long"):
        pytest.skip("--long")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with ApiServer(tmp_path) as server:
            before = memory_of(server)
            took_s = half_open(server, MANY)
            grown = (memory_of(server) - before) / MIB
        told = f"beside {MANY} half-open connections: /health in {took_s:.3f} s, memory +{grown:.1f} MiB"
        print(f"\n{told}")  # noqa: T201  a figure of the long form
        assert took_s < 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_head_without_end_is_refused(api_server):
    with connected(api_server) as sock:
        try:
            sock.sendall(HEAD)
            for _ in range(2 * MOST_HEAD_BYTES // 1000):
                sock.sendall(b"X-More: " + b"x" * 1000 + b"\r\n")
        except ConnectionError:
            return
        assert b" 200 " not in rest_of(sock)
    assert well(api_server) < 5


def test_one_header_without_end_is_refused(api_server):
    with connected(api_server) as sock:
        try:
            sock.sendall(HEAD + b"X-More: ")
            for _ in range(4 * MOST_HEAD_BYTES // 1000):
                sock.sendall(b"x" * 1000)
                time.sleep(0)
        except ConnectionError:
            return
        assert b" 200 " not in rest_of(sock)


@pytest.mark.parametrize("token", [True, False])
def test_a_body_of_300_megabytes_is_refused_by_its_header_alone(api_server, token):
    before = memory_of(api_server)
    bearer = f"Authorization: Bearer {api_server.token(Role.ADMIN)}\r\n" if token else ""
    head = f"POST /api/v1/users HTTP/1.1\r\nHost: api\r\n{bearer}Content-Length: {300 * MIB}\r\n\r\n"
    with connected(api_server) as sock:
        sock.sendall(head.encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 413" if token else b"HTTP/1.1 401")
        sent = 0
        try:
            while sent < 300 * MIB:  # and whoever goes on sending is cut off
                sent += sock.send(b" " * 65536)
        except ConnectionError:
            pass
        assert sent < 4 * MOST_WASTED_BYTES
    assert memory_of(api_server) - before < 32 * MIB


def test_a_body_of_300_megabytes_in_chunks_is_refused_while_it_comes(api_server):
    before = memory_of(api_server)
    bearer = f"Authorization: Bearer {api_server.token(Role.ADMIN)}\r\n"
    head = f"POST /api/v1/users HTTP/1.1\r\nHost: api\r\n{bearer}Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with connected(api_server) as sock:
        sock.sendall(head.encode())
        sent = 0
        try:
            while sent < 300 * MIB:
                sent += sock.send(chunk)
        except ConnectionError:
            pass
        assert sent < 150 * MIB
    eventually(lambda: memory_of(api_server) - before < 100 * MIB, what="the memory is given back")
    assert well(api_server) < 5


def test_who_does_not_read_holds_nobody_up(api_server):
    """They ask for the document again and again and read nothing: what is not read is not made."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: api\r\n\r\n"
    before = memory_of(api_server)
    with ExitStack() as stack:
        socks = []
        for _ in range(20):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", api_server.port))
            sock.setblocking(False)
            socks.append(sock)
        for sock in socks:
            for _ in range(200):
                try:
                    sock.send(ask)
                except BlockingIOError:
                    break
        assert well(api_server) < 5
        assert memory_of(api_server) - before < 64 * MIB


def test_a_body_that_comes_byte_by_byte_does_not_keep_others_waiting(api_server):
    bearer = f"Authorization: Bearer {api_server.token(Role.ADMIN)}\r\n"
    head = f"POST /api/v1/users HTTP/1.1\r\nHost: api\r\n{bearer}Content-Length: 1000\r\n\r\n"
    over = threading.Event()
    with connected(api_server) as sock:
        sock.sendall(head.encode())

        def drip():
            while not over.wait(0.1):
                sock.send(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert well(api_server) < 5
        finally:
            over.set()
            thread.join()
