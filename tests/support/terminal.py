"""A program at a real terminal (pty), typed to and read like a person does."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

#: the first terminal that the leader of a session opens is the one whose Ctrl-C reaches it
OPEN = 'tty=$1; shift; exec "$@" <>"$tty" >&0 2>&0'
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """`with Terminal(command, env, folder) as screen: screen.enter("hi"); screen.expect("there")`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        ours, theirs = pty.openpty()
        self._end = ours
        self._read = 0  #: how far `expect` has come
        self.screen = ""  #: everything it has shown
        self.process = subprocess.Popen(
            ["sh", "-c", OPEN, "sh", os.ttyname(theirs), *command],
            env={**os.environ, "TERM": "dumb", **env},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def enter(self, line: str) -> None:
        """A line and Enter."""
        self.press(f"{line}\n")

    def press(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def expect(self, text: str, *, within_s: float = 30.0) -> str:
        """What it showed before this text, since the last `expect`."""
        deadline = time.monotonic() + within_s
        while (at := self.screen.find(text, self._read)) < 0:
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} within {within_s:g} s; the screen:\n{self.screen}"
            self.screen += self._take()
        before = self.screen[self._read : at]
        self._read = at + len(text)
        return before

    def _take(self) -> str:
        try:
            shown = os.read(self._end, 65536).decode(errors="replace")
        except OSError:  # Linux says EIO when the program has gone
            shown = ""
        assert shown, f"the program ended; the screen:\n{self.screen}"
        return shown

    def ends_by(self, key: str) -> int:
        """Its exit code after this key, pressed again where the first one was lost.

        Python looks for signals, then waits for keys: a Ctrl-C between the two wakes nobody.
        """
        for _ in range(3):
            self.press(key)
            with suppress(subprocess.TimeoutExpired):
                return self.ends(within_s=5)
        return self.ends()

    def ends(self, *, within_s: float = 20.0) -> int:
        """Its exit code."""
        return self.process.wait(within_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)
