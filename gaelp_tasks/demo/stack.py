"""Parts that live and die together: started in order, stopped in reverse, none left behind."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self, TypeVar

from gaelp_tasks.demo.parts import Child, Part

__all__ = ["Stack"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, the terminal is closed
WATCH_S = 0.2

T = TypeVar("T")


class Stack:
    """`with Stack() as stack:` in the main thread; whatever ends the block stops every part.

    Inside, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, and so does SIGINT where the `&` of a
    shell had it ignored. While parts are being stopped a further signal cuts the waiting short: all are
    killed.
    """

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._hurry = threading.Event()

    def start(self, part: Part) -> Child:
        """Start a part with a fresh log. Raises PartFailed."""
        part.log.unlink(missing_ok=True)
        return self.adopt(Child(part))

    def adopt(self, child: Child) -> Child:
        """Answer for a part that was started already."""
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raise PartFailed when a part has ended by itself."""
        for child in self.children:
            if not child.alive:
                raise child.death()

    def wait_for(self, child: Child, probe: Callable[[Child], T | None]) -> T:
        """`child.wait_for(probe)`, given up as soon as any part ends. Raises PartFailed."""

        def watched(child: Child) -> T | None:
            self.check()
            return probe(child)

        return child.wait_for(watched)

    def watch(self) -> None:
        """Return never: KeyboardInterrupt when told to end, PartFailed when a part ends by itself."""
        while True:
            self.check()
            time.sleep(WATCH_S)

    def stop(self) -> None:
        """Stop every part, the last started first."""
        with _on(ENDING, lambda *_: self._hurry.set()):
            while self.children:
                self.children.pop().stop(self._hurry)

    def __enter__(self) -> Self:
        self._signals = _on(ENDING, _interrupt)
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._signals.__exit__(kind, error, trace)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _on(
    numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # nohup means it
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
