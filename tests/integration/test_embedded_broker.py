"""Our own Redis: real, ours, durable, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaelp_tasks.demo import broker
from gaelp_tasks.demo.broker import start_broker
from gaelp_tasks.demo.parts import PartFailed
from support.redis_server import RedisServer, redis_binary

pytestmark = pytest.mark.redis


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Wait for the end of a process that is not our child; a zombie has ended."""
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def test_it_listens_on_loopback_with_an_append_only_file_and_evicts_nothing():
    with RedisServer() as server, server.client() as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.info("server")["process_id"] == server.pid
        pid = server.pid
    assert gone(pid)


def test_a_killed_one_comes_back_with_what_it_had():
    with RedisServer() as server, server.client() as client:
        client.rpush("queue", "first", "second")
        server.kill()
        server.start()
        assert client.lrange("queue", 0, -1) == ["first", "second"]


def test_it_is_stopped_when_the_block_fails():
    server = RedisServer()

    def use_it_and_fail() -> None:
        with server:
            raise LookupError(server.pid)

    with pytest.raises(LookupError) as failure:
        use_it_and_fail()
    assert gone(failure.value.args[0])
    assert not server.directory.exists()


def test_a_frozen_one_is_stopped_too():
    with RedisServer() as server:
        server.freeze()
        pid = server.pid
    assert gone(pid)


def test_a_port_that_somebody_takes_first_is_given_up_for_another(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        choices = iter([taken.getsockname()[1], broker.free_port()])
        monkeypatch.setattr(broker, "free_port", lambda: next(choices))
        child, port = start_broker(redis_binary(), tmp_path / "data", log=tmp_path / "log")
        try:
            assert port != taken.getsockname()[1]
        finally:
            child.stop()


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_with_the_log(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(PartFailed, match=r"The broker ended while it started: .* Its log is .*redis\.log"),
    ):
        start_broker(
            redis_binary(), tmp_path / "data", log=tmp_path / "redis.log", port=taken.getsockname()[1]
        )


def test_another_redis_on_the_port_is_never_mistaken_for_ours(tmp_path):
    with RedisServer() as other, pytest.raises(PartFailed, match="The broker ended while it started"):
        start_broker(redis_binary(), tmp_path / "data", log=tmp_path / "redis.log", port=other.port)


OWNER = """
import sys
from pathlib import Path
from gaelp_tasks.demo.broker import start_broker
folder = Path(sys.argv[2])
child, port = start_broker(Path(sys.argv[1]), folder / "data", log=folder / "log")
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_an_owner_who_was_killed(tmp_path, number):
    command = [sys.executable, "-c", OWNER, str(redis_binary()), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        pid = int(owner.stdout.readline())
        os.kill(pid, 0)
        owner.send_signal(number)
        assert gone(pid)
