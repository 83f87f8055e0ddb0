"""What `make up` started, for `gaelp` in another shell: `.run/up.json`. Standard library only.

The running system holds a lock on the folder `.run`, which the kernel lets go when its process dies: an
up.json that nobody holds the lock for is stale, whatever pid it names.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["RUN_FOLDER", "UP_FILE", "AlreadyUp", "claimed", "read_upfile", "write_private", "write_upfile"]

RUN_FOLDER = ".run"
UP_FILE = "up.json"
READERS_GONE_S = 0.5  # a reader holds the lock for microseconds, and must not look like a running system


class AlreadyUp(Exception):
    """Another process holds the folder."""


def read_upfile(root: Path | None = None) -> dict[str, str] | None:
    """The GAELP_ variables of the system that runs out of `root` (None: the current folder).

    None where no system runs, or it is still starting.
    """
    folder = (root or Path.cwd()) / RUN_FOLDER
    try:
        with _locked(folder, fcntl.LOCK_SH):
            return None  # nobody holds it: stale, or nothing was ever started
    except AlreadyUp:
        pass
    except OSError:
        return None
    try:
        env = json.loads((folder / UP_FILE).read_text())["env"]
        return {str(name): str(value) for name, value in env.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def claimed(root: Path) -> Iterator[Path]:
    """Hold `root`/.run for a running system and yield it; up.json goes at the end.

    Raises AlreadyUp when another process holds it, OSError where the folder cannot be made.
    """
    folder = root / RUN_FOLDER
    folder.mkdir(exist_ok=True)
    with _locked(folder, fcntl.LOCK_EX, patience_s=READERS_GONE_S):
        upfile = folder / UP_FILE
        upfile.unlink(missing_ok=True)
        try:
            yield folder
        finally:
            upfile.unlink(missing_ok=True)


def write_upfile(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `folder`/up.json."""
    write_private(folder / UP_FILE, json.dumps(content, indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a file in one step, readable by its owner only: passwords, and addresses that carry them."""
    beside = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)


@contextmanager
def _locked(folder: Path, kind: int, *, patience_s: float = 0.0) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        give_up_at = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise AlreadyUp from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
