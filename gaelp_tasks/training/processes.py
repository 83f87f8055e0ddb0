"""A program that runs beside us: its lines, its end, and how it is told to end."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import IO

from gaelp_tasks.models.training import Stream
from gaelp_tasks.training.output import Splitter
from gaelp_tasks.training.runner import Launch

__all__ = ["Process"]

READ = 64 * 1024  #: bytes at a time
DRAIN_S = 1.0  #: for what a process has printed last; a grandchild may keep the pipe open


class Process:
    """One started program, in a session and a process group of its own."""

    def __init__(self, process: asyncio.subprocess.Process, launch: Launch) -> None:
        self._process, self._launch = process, launch
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, launch: Launch, heard: Callable[[Stream, str], None]) -> "Process":
        """Start it on the loop of this thread, which it does not outlive. Raises OSError."""
        await _quietly(launch, launch.before)
        with _given(launch.stdin) as stdin:
            process = await asyncio.create_subprocess_exec(
                *launch.argv,
                cwd=launch.folder,
                env=dict(launch.env),
                stdin=stdin,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,
            )
        made = cls(process, launch)
        for stream, pipe in ((Stream.STDOUT, process.stdout), (Stream.STDERR, process.stderr)):
            assert pipe is not None  # noqa: S101  both were asked for
            made._readers.append(asyncio.create_task(_read(pipe, stream, heard)))
        return made

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    async def ended(self) -> int:
        """Its exit code, negative for a signal, once all that it printed is heard."""
        code = await self._process.wait()
        self._signal(signal.SIGKILL)  # what it has left behind in its group
        _, late = await asyncio.wait(self._readers, timeout=DRAIN_S)
        for reader in late:
            reader.cancel()
        return code

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM to its group: it may save itself first."""
        self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)
        await _quietly(self._launch, self._launch.on_kill)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


@contextmanager
def _given(text: str) -> Iterator[IO[bytes] | int]:
    """A file to read this from, which no folder shows and which is gone with its last reader."""
    if not text:
        yield DEVNULL
        return
    with TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


async def _quietly(launch: Launch, command: tuple[str, ...]) -> None:
    """Run a command beside, whatever comes of it."""
    if command:
        with suppress(OSError):
            beside = await asyncio.create_subprocess_exec(
                *command, env=dict(launch.env), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
            )
            await beside.wait()


async def _read(pipe: asyncio.StreamReader, stream: Stream, heard: Callable[[Stream, str], None]) -> None:
    splitter = Splitter()
    while piece := await pipe.read(READ):
        for line in splitter.feed(piece):
            heard(stream, line)
    for line in splitter.end():
        heard(stream, line)


def write_private(path: str, text: str) -> None:
    """Write a file that only this user may read, whatever was there."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108  beside os.open
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
