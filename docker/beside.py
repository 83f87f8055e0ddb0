"""Start a worker beside its model server: `beside.py gaelp worker`; both are services of compose.yaml.

A model server has one worker: who holds its lease in Redis, for which this program lives on as the worker's
parent. The worker of number k takes the server of number k at once; who finds none free stands by, says so on
a page of its own, and takes the next one whose worker has gone. GAELP_OLLAMA_NODES, where it is set, counts
instead.
"""

import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from time import monotonic
from typing import Any

SERVERS = ("ollama", "ollama-gpu", "sim")  #: services of model servers; the first name also stands for all
GPU = "ollama-gpu"
PORT = 11434
MOST = 100  #: workers that are looked for
TTL_S = 10.0  #: of a lease; a worker whose container stood still for longer is replaced
RENEW_S = 2.0  #: between two renewals
LOOK_S = 1.0  #: between two looks of who stands by
FREE_S = 5.0  #: a lease is seen to be free for so long before it is taken: Redis may have been away for all
STOP_S = 40.0  #: for a worker that gives way, as long as compose.yaml gives it
ANSWER_S = 1.0  #: Redis has to answer
STANDBY = "gaelp_worker_standing_by"  #: on the page; `gaelp health worker` knows it
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

#: KEYS 1 the lease; ARGV 1 who we are, 2 ms. Take it, or renew it: 1; 0: somebody else has it
TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
#: KEYS 1 the lease; ARGV 1 who we are
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

Lookup = Callable[[str], set[str]]
Mine = Callable[[str], bool]


# --- which servers there are ---


def addresses(name: str) -> set[str]:
    """What a name stands for; nothing where nobody has it."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def is_mine(address: str) -> bool:
    """Whether an address is one of this container; it may have one on each of its networks."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((address, 0))
        except OSError:
            return False
    return True


def own_number(project: str, mine: Mine, lookup: Lookup) -> int | None:
    """Which of the workers we are, from 1 on; None where no name of a worker is ours."""
    numbers = range(1, MOST + 1)
    return next((k for k in numbers if any(map(mine, lookup(f"{project}-worker-{k}")))), None)


def names(project: str, nodes: int, lookup: Lookup) -> list[str]:
    """The names of all model servers by their numbers. Raises LookupError with one sentence."""
    if nodes == 1:
        found = [SERVERS[0]] if lookup(SERVERS[0]) else []
    else:
        every = ([f"{project}-{service}-{k}" for k in range(1, nodes + 1)] for service in SERVERS)
        found = next((those for those in every if any(map(lookup, those))), [])
    if not found:
        raise LookupError(
            "There is no model server for this worker: start compose with --profile cpu, gpu or sim and "
            "GAELP_NODES as many as there are, or set GAELP_OLLAMA_NODES."
        )
    return found


def budget(given: str, server_memory: str, *, gpu: bool) -> str:
    """What the worker may give to models; '' where nobody has said. Raises LookupError with one sentence."""
    if gpu and not given:
        raise LookupError(
            "GAELP_MEMORY_BUDGET is not set: a worker beside ollama-gpu must be told how much memory of the "
            "GPUs is its own. Several servers share all of them: divide by GAELP_NODES."
        )
    return given or server_memory


# --- which of them is ours ---


class Watch:
    """Decides look by look which server to take. Pure.

    `first` is the server of our own number: taken at once when we begin. Any other one has to be free for
    FREE_S, as its own worker may be about to take it, or to renew it after Redis was away.
    """

    def __init__(self, holder: str, first: str | None) -> None:
        self._holder = holder
        self._first = first
        self._begins = True
        self._free_since_s: dict[str, float] = {}

    def choice(self, holders: Mapping[str, str], now_s: float) -> str | None:
        """The server to take now, by who holds which ('': nobody); None: stand by."""
        free = [server for server, holder in holders.items() if holder in {"", self._holder}]
        self._free_since_s = {server: self._free_since_s.get(server, now_s) for server in free}
        begins, self._begins = self._begins, False
        kept = next((server for server in free if holders[server]), None)
        if kept is not None:  # this very container was killed, and has begun anew
            return kept
        if begins and self._first in free:
            return self._first
        return next((one for one in free if now_s - self._free_since_s[one] >= FREE_S), None)

    def lost(self) -> None:
        """Redis did not answer: nobody knows what was free meanwhile."""
        self._free_since_s = {}


class Leases:
    """Who has which model server. Methods raise what redis-py raises."""

    def __init__(self, redis: Any, key: Callable[[str], str], holder: str) -> None:
        self._redis = redis
        self._take = redis.register_script(TAKE)
        self._release = redis.register_script(RELEASE)
        self._key = key
        self._holder = holder

    def holders(self, servers: Iterable[str]) -> dict[str, str]:
        """Who holds each; '' for nobody."""
        asked = list(servers)
        found = self._redis.mget([self._key(server) for server in asked]) if asked else []
        return {server: holder or "" for server, holder in zip(asked, found, strict=True)}

    def take(self, server: str) -> bool:
        """Have it for TTL_S from now; False where somebody else has it."""
        return bool(self._take(keys=[self._key(server)], args=[self._holder, int(TTL_S * 1000)]))

    def release(self, server: str) -> None:
        """Let another one have it at once."""
        self._release(keys=[self._key(server)], args=[self._holder])


class Signals:
    """What a supervisor has sent; passed on to the worker once there is one."""

    def __init__(self) -> None:
        self.last = 0  #: the number of the last one; 0: none has come
        self._child: subprocess.Popen[bytes] | None = None
        for number in PASSED_ON:
            signal.signal(number, self._came)

    def to(self, child: "subprocess.Popen[bytes]") -> None:
        """Pass them on from now on, and the one that came before."""
        self._child = child
        if self.last:
            child.send_signal(self.last)

    def _came(self, number: int, _frame: object) -> None:
        self.last = number
        if self._child is not None:
            self._child.send_signal(number)


class _Answer(BaseHTTPRequestHandler):
    timeout = 2.0

    def do_GET(self) -> None:
        answered = isinstance(self.server, Page) and self.server.answered
        body = f"# TYPE {STANDBY} gauge\n{STANDBY} {int(answered)}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Say nothing: a scrape comes every few seconds."""


class Page(socketserver.TCPServer):
    """Where a worker's page will be: it says that we stand by, between two looks and on the same thread."""

    allow_reuse_address = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answered = True  #: Redis has, when it was asked last
        super().__init__((host, port), _Answer)

    def answer_for(self, seconds: float) -> None:
        """Answer whoever asks meanwhile."""
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            self.timeout = left
            self.handle_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client has gone."""


# --- the two lives of this program ---


def stand_by(
    servers: Callable[[], Iterable[str]],
    watch: Watch,
    leases: Leases,
    signals: Signals,
    page: Callable[[], Page],
) -> str | None:
    """Wait for a server and take its lease; None where we are to end."""
    from gaelp_tasks.connections import unavailable  # noqa: PLC0415  see main

    shown: Page | None = None
    trouble = ""  # with Redis; told once for as long as it is the same
    try:
        while not signals.last:
            before, trouble = trouble, ""
            try:
                server = watch.choice(leases.holders(servers()), monotonic())
                if server is not None and leases.take(server):
                    return server
            except unavailable as error:
                watch.lost()
                trouble = str(error) or type(error).__name__
                if trouble != before:
                    say(f"Redis does not serve us ({trouble}); trying again.")
            if shown is None:
                shown = page()
                say("Standing by: the next model server whose worker has gone is ours.")
            shown.answered = not trouble
            shown.answer_for(LOOK_S)
    finally:
        if shown is not None:
            shown.server_close()
    return None


def work(command: list[str], server: str, leases: Leases, signals: Signals) -> int:
    """Run the worker while the lease is ours; gives its exit code as a shell does."""
    from gaelp_tasks.connections import unavailable  # noqa: PLC0415  see main

    child = subprocess.Popen(command)  # noqa: S603  the command is compose.yaml's own
    signals.to(child)
    gives_way_at_s: float | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = child.wait(RENEW_S)
            break
        if gives_way_at_s is not None:
            if monotonic() - gives_way_at_s > STOP_S:
                child.kill()
            continue
        with suppress(*unavailable):  # ridden out, as the worker does; then it is ours still, or another's
            if not leases.take(server):
                say(f"Another worker has {server} by now: this one gives way.")
                gives_way_at_s = monotonic()
                child.terminate()
    with suppress(*unavailable):
        leases.release(server)
    return code if code >= 0 else 128 - code


def say(sentence: str) -> None:
    """One line of the container's log."""
    sys.stderr.write(f"beside: {sentence}\n")


def beside(command: list[str], project: str, nodes: int) -> int:
    """Have the command work beside a server; gives its exit code. Raises LookupError with one sentence."""
    os.environ["GAELP_MEMORY_BUDGET"] = budget(
        os.environ.get("GAELP_MEMORY_BUDGET", ""),
        os.environ.get("OLLAMA_MEMORY", ""),
        gpu=bool(addresses(GPU)),
    )
    every = names(project, nodes, addresses)
    from gaelp_tasks.connections import connect  # noqa: PLC0415  see main
    from gaelp_tasks.errors import SettingsError  # noqa: PLC0415
    from gaelp_tasks.keys import Keys  # noqa: PLC0415
    from gaelp_tasks.settings import load_settings  # noqa: PLC0415

    try:
        settings = load_settings()
    except SettingsError as error:
        raise LookupError(str(error)) from None
    keys, holder, signals = Keys(settings.namespace), socket.gethostname(), Signals()
    leases = Leases(
        connect(settings, answer_s=ANSWER_S), lambda server: keys.beside(f"{project}:{server}"), holder
    )
    number = 1 if nodes == 1 else own_number(project, is_mine, addresses)
    watch = Watch(holder, every[number - 1] if number is not None and number <= nodes else None)
    server = stand_by(
        lambda: filter(addresses, every),
        watch,
        leases,
        signals,
        lambda: Page(settings.metrics_listener[0], settings.metrics_port),
    )
    if server is None:
        return 0
    os.environ["GAELP_OLLAMA_NODES"] = f"http://{server}:{PORT}"
    return work(command, server, leases, signals)


def main(command: list[str]) -> None:
    """Run the command with the node in its environment; what needs our package is imported only there."""
    if os.environ.get("GAELP_OLLAMA_NODES"):
        os.environ["GAELP_MEMORY_BUDGET"] = budget(
            os.environ.get("GAELP_MEMORY_BUDGET", ""), os.environ.get("OLLAMA_MEMORY", ""), gpu=False
        )
        os.execvp(command[0], command)  # noqa: S606  the command is compose.yaml's own
    nodes = os.environ.get("NODES", "1")
    if not re.fullmatch(r"[1-9]\d{0,3}", nodes):
        sys.exit(f"beside: GAELP_NODES: {nodes} is no number of model servers.")
    try:
        code = beside(command, os.environ.get("PROJECT", "gaelp"), int(nodes))
    except (LookupError, OSError) as error:
        sys.exit(f"beside: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
