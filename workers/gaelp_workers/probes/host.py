"""The only door to psutil: memory of the host, its own addresses, and what a server's processes hold."""

from contextlib import suppress
from ipaddress import ip_address
from socket import gethostname
from urllib.parse import urlsplit

import psutil

from gaelp_tasks.models.capacity import MemorySnapshot

__all__ = ["Server", "host_memory", "own_names", "port_here"]

#: they pass connections on: the server itself is in a container, or on another machine
FORWARDERS = frozenset(
    {"caddy", "conmon", "docker-proxy", "envoy", "haproxy", "kubectl", "nginx", "pasta", "rootlessport"}
    | {"slirp4netns", "socat", "ssh", "sshd", "traefik"}
)


def host_memory() -> MemorySnapshot:
    """Memory of the host; inside a container this is still the host's, not the container's."""
    memory = psutil.virtual_memory()
    return MemorySnapshot(
        total_bytes=memory.total, free_bytes=min(memory.available, memory.total), source="host"
    )


def own_names() -> frozenset[str]:
    """What this machine is called, and its addresses."""
    name = gethostname().lower()
    found = {"localhost", name, name.partition(".")[0]}
    with suppress(psutil.Error, OSError):
        interfaces = psutil.net_if_addrs().values()
        found |= {address.address.partition("%")[0] for addresses in interfaces for address in addresses}
    return frozenset(found)


def port_here(url: str, names: frozenset[str]) -> int | None:
    """The port of an address on this machine; None for one elsewhere. Nobody is asked what a name means."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    loopback = False
    with suppress(ValueError):  # a name
        address = ip_address(host)
        loopback = address.is_loopback or address.is_unspecified
    if not loopback and host not in names:
        return None
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # no number, or too large
        return None


class Server:
    """The processes of the model server that listens on a port of this machine: itself and its children."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._process: psutil.Process | None = None
        self.pid: int | None = None  #: None: nobody listens there, or it is not for us to see
        #: RAM of all of them as it is resident, pages that they share counted for each; None as for `pid`
        self.held_bytes: int | None = None

    def look(self) -> None:
        """See what there is now. Reads every process of the machine: milliseconds, not for an event loop."""
        if self._process is None or not self._process.is_running():
            self._process = self._listener()
        held = None
        try:
            if self._process is not None:
                held = _held(self._process)
        except Exception:  # noqa: BLE001  it has just ended, or is hidden; psutil reads files of many systems
            self._process = None
        self.held_bytes = held
        self.pid = None if self._process is None else self._process.pid

    def _listener(self) -> psutil.Process | None:
        try:
            for found in psutil.net_connections("tcp"):
                # laddr is (ip, port), or empty where the socket has no address
                if found.pid and found.status == psutil.CONN_LISTEN and found.laddr[1:] == (self._port,):
                    process = psutil.Process(found.pid)
                    if process.name() not in FORWARDERS:
                        return process
        except Exception:  # noqa: BLE001, S110  macOS tells only root; a process may end while it is looked at
            pass
        return None


def _held(process: psutil.Process) -> int:
    held = process.memory_info().rss
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a runner that was unloaded meanwhile
            held += child.memory_info().rss
    return held
