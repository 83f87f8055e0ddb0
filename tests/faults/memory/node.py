"""One node in a cgroup of its own: a model server and a neighbour share its memory, and it is watched."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from faults.history.probes import PATH
from faults.memory.record import Moment
from faults.memory.trace import LIMIT_BYTES, NUM_CTX, NUM_PARALLEL, Burst, Trace
from gaelp_tasks.demo.parts import Child, Part
from support.cgroups import MemoryGroup
from support.paging_server import PAGES, Plan

LOOK_S = 0.01  #: between two looks at what is free


class Neighbour:
    """A process beside the server that takes and gives back memory."""

    def __init__(self, group: MemoryGroup) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PAGES), str(group.door)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *steps: str) -> None:
        """Steps of support.pages, done one after another behind those that were told before."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{step}\n" for step in steps))
        self._process.stdin.flush()

    def do(self, step: str) -> None:
        """One step, done when this returns."""
        assert self._process.stdout is not None
        self.tell(step)
        assert self._process.stdout.readline(), "the neighbour has died"

    def live(self, bursts: Sequence[Burst]) -> None:
        """Do what these bursts say."""
        for burst in bursts:
            self.tell(
                f"wait {burst.wait_s}",
                f"take {burst.size_bytes} {burst.ramp_s}",
                f"wait {burst.hold_s}",
                "give",
            )

    def end(self) -> None:
        """Now, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # steps that it never read
                pipe.close()


class Watch:
    """Looks at the cgroup's memory all the time, on a thread."""

    def __init__(self, group: MemoryGroup) -> None:
        self.seen: list[Moment] = []
        self.over = threading.Event()
        self._group = group
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def _look(self) -> None:
        while not self.over.wait(LOOK_S):
            self.seen.append(Moment(time.monotonic(), self._group.free_bytes))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._thread.join()


@dataclass
class Node:
    """What is there while a trace runs."""

    url: str
    group: MemoryGroup
    neighbour: Neighbour
    watch: Watch
    _journal: Path
    _beginner: threading.Thread | None = field(default=None, init=False)

    def live(self, bursts: Sequence[Burst]) -> None:
        """The neighbour begins with these once a model is in memory: until then nobody has to give way."""

        def begin() -> None:
            while not any(noted["event"] == "loaded" for noted in self.journal()):
                if self.watch.over.wait(LOOK_S):
                    return
            self.neighbour.live(bursts)

        self._beginner = threading.Thread(target=begin, name="neighbour", daemon=True)
        self._beginner.start()

    def end(self) -> None:
        """Nothing begins any more."""
        self.watch.over.set()
        if self._beginner is not None:
            self._beginner.join()

    def journal(self) -> list[dict[str, Any]]:
        """What the server has noted so far."""
        return [json.loads(line) for line in self._journal.read_text().splitlines()]


@contextmanager
def node(trace: Trace, folder: Path) -> Iterator[Node]:
    """The node of a trace; nothing of it is left afterwards. Raises OSError where no cgroup can be made."""
    journal = folder / "journal"
    journal.write_text("")  # an earlier run may have kept one there
    with ExitStack() as stack:
        group = stack.enter_context(MemoryGroup(LIMIT_BYTES))
        plan = Plan(
            models=trace.models,
            num_parallel=NUM_PARALLEL,
            num_ctx=NUM_CTX,
            door=str(group.door),
            limit_bytes=LIMIT_BYTES,
            used=str(group.directory / group.layout.used),
            journal=str(journal),
        )
        command = (sys.executable, "-m", "support.paging_server", str(plan.written(folder / "plan.json")))
        server = Child(Part(name="model server", command=command, env=PATH, log=folder / "server.log"))
        stack.callback(server.stop)
        neighbour = Neighbour(group)
        stack.callback(neighbour.end)
        url = server.wait_for(lambda child: child.output().strip() or None)
        watch = stack.enter_context(Watch(group))
        place = Node(url, group, neighbour, watch, journal)
        stack.callback(place.end)
        yield place
