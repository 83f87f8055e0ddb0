"""Ctrl-C and SIGTERM as something to look at, for what must not be broken off in the midst of a screen."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

__all__ = ["INTERRUPTED", "Noted", "noted_signals"]

INTERRUPTED = 130
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 143}


class Noted:
    """Which of them came; raised where it happens to come, one could be lost, or half of a screen stay."""

    def __init__(self, woken: int) -> None:
        self.woken = woken  #: readable once one has come, also between a look at `code` and a select
        self.code = 0  #: exit code for the first that came, 0: none has

    def note(self, number: int, _: Any) -> None:
        """As a handler of signals. The second one does not wait for anything: raises typer.Exit."""
        if self.code:
            raise typer.Exit(self.code)
        self.code = CODES[signal.Signals(number)]


@contextmanager
def noted_signals() -> Iterator[Noted]:
    """Both are only noted until the block ends; the main thread's."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    noted = Noted(woken)
    before = {number: signal.signal(number, noted.note) for number in CODES}
    # Python itself writes there, whatever the main thread is doing
    wake_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield noted
    finally:
        signal.set_wakeup_fd(wake_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(woken)
