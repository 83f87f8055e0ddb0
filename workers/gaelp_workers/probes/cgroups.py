"""Memory cgroups, version 2 and 1: how much the limits around a process leave it.

A limit holds for all below it, so each cgroup from the process' own up to the root is read, and the one that
leaves least counts: that may be a parent whose other children are full. `psutil` sees none of this.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gaelp_tasks.models.capacity import MemorySnapshot

__all__ = ["V1", "V2", "Cgroup", "Layout"]

#: bytes; version 1 says «no limit» by the largest number of its counter, which depends on the page size
UNLIMITED = 2**62


class Layout(NamedTuple):
    """Where one version of cgroups keeps things."""

    name: str  #: what a snapshot calls its source
    controller: str  #: in /proc/PID/cgroup
    mount: str  #: below the root of all cgroups
    limits: tuple[str, ...]  #: files; the smallest number counts
    used: str  #: file
    idle_cache: str  #: line of memory.stat: file pages that the kernel gives up before it kills


#: at `high` a cgroup is throttled to a crawl, which is no use to a model either
V2 = Layout("cgroup v2", "", "", ("memory.max", "memory.high"), "memory.current", "inactive_file")
V1 = Layout(
    "cgroup v1",
    "memory",
    "memory",
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    "total_inactive_file",
)


class Cgroup:
    """The probe of one version.

    `pid` names the process whose limits count, None this one; a limit of `most_bytes` (the host's memory) or
    more is none. The roots are for tests.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        pid: Callable[[], int | None] = lambda: None,
        most_bytes: int = UNLIMITED,
        proc: Path = Path("/proc"),
        root: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._layout = layout
        self._pid = pid
        self._most_bytes = most_bytes
        self._proc = proc
        self._root = root / layout.mount

    def __call__(self) -> MemorySnapshot | None:
        """What is left inside the limits; None where there are none. Raises OSError, ValueError."""
        told = (self._level(directory) for directory in self._way_up())
        return min((one for one in told if one), key=lambda one: one.free_bytes, default=None)

    def _way_up(self) -> Iterator[Path]:
        """The process' own cgroup, then each above it, whether it is mounted here or not."""
        own = self._own()
        if own is None:
            return
        directory = self._root / own.lstrip("/")
        yield directory
        while directory != self._root:
            directory = directory.parent
            yield directory

    def _own(self) -> str | None:
        """The path of the process' cgroup below the root; None where it has none of this version in sight."""
        for line in self._memberships().splitlines():
            _, controllers, path = line.split(":", 2)
            if self._layout.controller in controllers.split(","):
                # above the root of a container's namespace there are cgroups that it cannot see
                return None if ".." in path.split("/") else path
        return None

    def _memberships(self) -> str:
        for process in (self._pid(), "self"):
            with suppress(FileNotFoundError):  # it has just ended; or there are no cgroups in this kernel
                if process is not None:
                    return _text(self._proc / str(process) / "cgroup")
        return ""

    def _level(self, directory: Path) -> MemorySnapshot | None:
        limit = min(_limit(directory / name) for name in self._layout.limits)
        if limit >= self._most_bytes:
            return None
        used = _number(directory / self._layout.used)
        hard_used = max(0, used - _line(directory / "memory.stat", self._layout.idle_cache))
        return MemorySnapshot(
            total_bytes=limit, free_bytes=max(0, limit - hard_used), source=self._layout.name
        )


def _text(file: Path) -> str:
    return file.read_text("ascii", "replace")


def _limit(file: Path) -> int:
    """UNLIMITED or more where there is no limit, and where there is no such file: a root has none."""
    try:
        text = _text(file).strip()
    except FileNotFoundError:
        return UNLIMITED
    return UNLIMITED if text == "max" else _whole(text, file)


def _number(file: Path) -> int:
    return _whole(_text(file).strip(), file)


def _line(file: Path, name: str) -> int:
    """The number behind a name; 0 where it is not told, so that all of the cache counts as used."""
    for line in _text(file).splitlines():
        key, _, number = line.partition(" ")
        if key == name:
            return _whole(number, file)
    return 0


def _whole(text: str, file: Path) -> int:
    if not text.isdigit():
        raise ValueError(f"{file} holds {text[:40]!r}, which is no number of bytes")
    return int(text)
