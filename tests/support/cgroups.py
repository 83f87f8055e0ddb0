"""A real memory cgroup for a test: its limit, what is used of it, and how many processes it has killed."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from gaelp_workers.probes.cgroups import V1, V2, Cgroup, Layout
from support.eventually import eventually

ROOT = Path("/sys/fs/cgroup")
#: files that tell how many processes were killed for memory, by layout
KILLS = {V1.name: "memory.oom_control", V2.name: "memory.events"}


class MemoryGroup:
    """`with MemoryGroup(limit_bytes) as group:`; a new cgroup below this process' own.

    Raises OSError where this user may make none.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.layout, self.directory = _made(limit_bytes)

    @property
    def door(self) -> Path:
        """The file into which a process writes 0 to join."""
        return self.directory / "cgroup.procs"

    @property
    def used_bytes(self) -> int:
        """What its processes and their files have."""
        return int((self.directory / self.layout.used).read_text())

    @property
    def free_bytes(self) -> int:
        """What is left of the limit."""
        return self.limit_bytes - self.used_bytes

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed here because memory was gone."""
        for line in (self.directory / KILLS[self.layout.name]).read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
        raise OSError(f"{self.directory} does not tell its kills")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        eventually(self._gone, what="the cgroup is taken away")

    def _gone(self) -> bool:
        with suppress(OSError):  # busy while a process is still leaving
            self.directory.rmdir()
        return not self.directory.exists()


def _made(limit_bytes: int) -> tuple[Layout, Path]:
    for layout in (V1, V2):
        own = Cgroup(layout)._own()
        parent = ROOT / layout.mount / (own or "/").lstrip("/")
        if own is None or not (parent / "cgroup.procs").exists():
            continue
        directory = parent / f"gaelp-{uuid4().hex[:8]}"
        directory.mkdir()
        try:
            (directory / layout.limits[0]).write_text(str(limit_bytes))
        except OSError:
            directory.rmdir()
            continue
        return layout, directory
    raise OSError("no memory controller that this user may use")
