"""`make sollol`, second half: SOLLOL at work on three nodes of which one dies, and what it costs to have it.

Runs in SOLLOL's own environment. The nodes are processes on this machine and are named; none is looked for.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distribution, version
from pathlib import Path
from time import perf_counter_ns
from urllib.parse import urlsplit

from clients import QUICK, measure_clients
from figures import table
from packaging.requirements import Requirement
from parts import start_node
from source import MODEL, prompt

from gaelp_tasks.clients import DistributedOllamaClient
from gaelp_tasks.clients.routers import NodeRouter, Outcome, router_named
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.errors import NodeError

NODES = 3
CALLERS = 8
CALLS = 400  #: of a phase
ASKED = prompt(3, 0.002)
DECISIONS = 2000
IMPORTS = 3  #: times that an import is measured; the fastest counts

#: Run in a process of its own: seconds, MB, modules, threads, sockets after importing.
LOOK = """
import os, re, sys, threading, time
before, begun = len(sys.modules), time.perf_counter()
exec(sys.argv[1])
took = time.perf_counter() - begun
links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name != "3"]
sockets = sum(link.startswith("socket:") for link in links)
memory = int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
print(took, memory, len(sys.modules) - before, threading.active_count() - 1, sockets)
"""
OURS = "from gaelp_tasks.clients import DistributedOllamaClient; DistributedOllamaClient('m', ['http://127.0.0.1:1'])"
THEIRS = "from gaelp_tasks.clients.routers import SollolRouter; SollolRouter(['http://127.0.0.1:1'])"


def closure(name: str, extras: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """A package and all that it needs here, by name."""
    found: dict[str, Distribution] = {}
    asked = [(name, extras)]
    while asked:
        wanted, extras = asked.pop()
        here = distribution(wanted)
        found[here.name.lower().replace("_", "-")] = here
        for line in here.requires or ():
            need = Requirement(line)
            known = need.name.lower().replace("_", "-") in found
            contexts = [{"extra": extra} for extra in ("", *extras)]
            if not known and (not need.marker or any(map(need.marker.evaluate, contexts))):
                asked.append((need.name, frozenset(need.extras)))
    return found


def size_mb(packages: dict[str, Distribution]) -> float:
    """Of their installed files."""
    paths = {Path(str(file.locate())) for package in packages.values() for file in package.files or ()}
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def looked(program: str) -> list[float]:
    """What a process has after this program."""
    runs = []
    for _ in range(IMPORTS):
        done = subprocess.run(
            [sys.executable, "-c", LOOK, program], capture_output=True, text=True, check=True, timeout=120
        )
        runs.append([float(field) for field in done.stdout.split()])
    return min(runs)


def decision_us(router: NodeRouter) -> float:
    """A choice and its report."""
    begun = perf_counter_ns()
    for _ in range(DECISIONS):
        lease = router.acquire(MODEL)
        if lease is not None:
            lease.report(Outcome.DONE, first_token_s=0.1)
    return (perf_counter_ns() - begun) / 1e3 / DECISIONS


def cost() -> str:
    """The table of docs/nodes.md."""
    base = closure("gaelp-tasks", frozenset({"client"}))
    extra = {name: package for name, package in closure("sollol").items() if name not in base}
    ours, theirs = looked(OURS), looked(THEIRS)
    many = [f"http://127.0.0.1:{port}" for port in range(1, 51)]
    rows = [
        ("packages", f"{len(base)}", f"{len(extra)} more"),
        ("installed files, without bytecode", f"{size_mb(base):.0f} MB", f"{size_mb(extra):.0f} MB more"),
        ("time to import and build", f"{ours[0]:.1f} s", f"{theirs[0]:.1f} s"),
        ("memory of the process then", f"{ours[1]:.0f} MB", f"{theirs[1]:.0f} MB"),
        ("modules", f"{ours[2]:.0f}", f"{theirs[2]:.0f}"),
        ("threads, sockets", f"{ours[3]:.0f}, {ours[4]:.0f}", f"{theirs[3]:.0f}, {theirs[4]:.0f}"),
    ]
    for urls in (many[:3], many):
        spent = [f"{decision_us(router_named(name, urls)):.0f} us" for name in ("least-loaded", "sollol")]
        rows.append((f"a decision among {len(urls)} nodes", *spent))
    lines = ["| | least-loaded | SOLLOL |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


@dataclass
class Phase:
    """What became of some calls at once."""

    answered: Counter[str] = field(default_factory=Counter)  #: by node
    failed: int = 0  #: without a word
    cut: int = 0  #: in the midst of their answer, which no other node can go on with


async def phase(client: DistributedOllamaClient) -> Phase:
    numbers = iter(range(CALLS))
    found = Phase()

    async def caller() -> None:
        for _ in numbers:
            node = ""
            try:
                async with aclosing(client.chat(ASKED)) as stream:
                    async for chunk in stream:
                        node = chunk.node
            except NodeError:
                found.cut += bool(node)
                found.failed += not node
            else:
                found.answered[node] += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return found


async def show(name: str, folder: Path) -> int:
    """One router over three nodes; the first is killed, and comes back. How many calls failed."""
    with Stack() as stack:
        started = [start_node(stack, folder, f"{name}-{number}") for number in range(NODES)]
        urls = [url for _, url in started]
        rows = []
        async with DistributedOllamaClient(MODEL, router_named(name, urls, slots=4)) as client:
            rows.append(("all are well", await phase(client)))
            work = asyncio.create_task(phase(client))
            await asyncio.sleep(0.05)
            child, url = started[0]
            stack.children.remove(child)
            os.kill(child.pid, signal.SIGKILL)
            rows.append(("the first is killed", await work))
            child.stop()
            start_node(stack, folder, f"{name}-again", urlsplit(url).port or 0)
            async with asyncio.timeout(30):
                while not client.router.snapshot()[0].healthy(MODEL):  # noqa: ASYNC110  routers send no events
                    await asyncio.sleep(0.05)
            rows.append(("it is back", await phase(client)))
    print(f"\n{name}: {CALLS} calls each time, {CALLERS} at once\n")
    print(f"| | {' | '.join(urls)} | failed | cut in mid-answer |\n|---|{'---|' * (NODES + 2)}")
    for what, found in rows:
        columns = [what, *(found.answered[url] for url in urls), found.failed, found.cut]
        print(f"| {' | '.join(map(str, columns))} |")
    return sum(found.failed for _, found in rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        failed = sum(asyncio.run(show(name, Path(folder))) for name in ("sollol", "least-loaded"))
        print(f"\nWhat the extra costs (SOLLOL {version('sollol')}):\n\n{cost()}\n")
        print(table(measure_clients(Path(folder), QUICK)))
    sys.exit(f"{failed} calls failed." if failed else 0)


if __name__ == "__main__":
    main()
