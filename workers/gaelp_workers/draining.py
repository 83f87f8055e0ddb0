"""The end of a worker: what runs may finish, the rest is handed back, and the process is gone in time.

The consumer's loop goes on turning meanwhile, so that acknowledgements, `inspect` and `cancel` still work;
only then Celery is told to stop. None of it waits for that loop, for Redis or for a task: each may hang.
"""

import atexit
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple, NoReturn

from celery import signals
from celery.worker import state
from celery.worker.control import Panel

from gaelp_tasks.connections import unavailable
from gaelp_workers.transport import Transport

__all__ = ["Drain"]

logger = logging.getLogger(__name__)

#: seconds after the grace (or after what ends it): stopped runs settle and give their messages back
HAND_BACK_S = 0.5
FORCE_S = 0.2  #: then Redis may answer for those that did not
GONE_S = 0.75  #: then the process is ended, whatever its main thread does
#: then it is ended by a thread without Python, for a task may keep the interpreter itself
GONE_AT_LAST_S = 0.9
UNDER_WAY_S = 0.1  #: a claim that was sent may still be answered
LEAVE_S = 5.0  #: for Celery's own way out where the grace is not used up
LOOK_S = 0.02


class Wish(NamedTuple):
    """Somebody wants the worker to end."""

    why: str
    at_once: bool
    code: int


class Drain(threading.Thread):
    """Ends this process in good order once it is asked to; until then it only waits.

    `running` tells what runs now, `stop_runs` asks all of it to stop. Where `owns_process` is false (a worker
    inside somebody's program) it takes no signals and never ends the process.
    """

    def __init__(
        self,
        *,
        grace_s: float,
        running: Callable[[], Collection[Future[Any]]],
        ids: Callable[[], Collection[str]],
        stop_runs: Callable[[], None],
        owns_process: bool,
        worker: str = "",
    ) -> None:
        super().__init__(name="gaelp-drain", daemon=True)
        self.begun = False  #: nothing new is taken from now on
        self.over = threading.Event()  #: nothing runs any more
        self._grace_s = grace_s
        self._running = running
        self._ids = ids
        self._stop_runs = stop_runs
        self._owns_process = owns_process
        self._worker = worker
        self._interrupts = 0
        self._gone_at = 0.0  #: monotonic
        self._at_once = False
        self._code = 0
        self._wishes: SimpleQueue[Wish] = SimpleQueue()  # its put() may be called in a signal handler

    def start(self) -> None:
        """Wait for a wish, and be the one who hears the signals: Celery has set its own before."""
        super().start()
        if self._owns_process:
            signals.worker_shutdown.connect(self._leave, weak=False)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        """SIGTERM or one Ctrl-C drains; a second Ctrl-C, or SIGQUIT, ends it at once."""
        self._interrupts += number == signal.SIGINT
        at_once = number == signal.SIGQUIT or self._interrupts > 1
        interrupted = 128 + number if at_once else 0
        self.ask(signal.Signals(number).name, at_once=at_once, code=interrupted)

    def ask(self, why: str, *, at_once: bool = False, code: int = 0) -> None:
        """Have the worker end, with this exit code; from any thread, again and again."""
        self.begun = True
        self._wishes.put(Wish(why, at_once, code))

    def run(self) -> None:
        """From the first wish to the end of the process."""
        wish = self._wishes.get()
        began = monotonic()
        ends = began if wish.at_once else began + self._grace_s
        self._at_once, self._code = wish.at_once, wish.code
        self._tell(wish)
        self._end_for_sure(ends)
        while self._running() or monotonic() < began + UNDER_WAY_S:
            if monotonic() >= ends:
                break
            if hurry := self._hurry(LOOK_S):
                ends, self._at_once, self._code = monotonic(), True, hurry.code
                self._end_for_sure(ends)
        if self._running():
            self._hand_back()
        self.over.set()
        if not self._owns_process:
            return
        if self._at_once:
            self._exit("stopped at once; nothing runs here any more")
        state.should_stop = self._code  # a turn of the loop notices
        self._gone_at = min(self._gone_at, monotonic() + LEAVE_S)
        while (left_s := self._gone_at - monotonic()) > 0:
            if hurry := self._hurry(left_s):
                self._gone_at, self._code = min(self._gone_at, monotonic() + FORCE_S), hurry.code
        self._exit("its main thread did not end in time; nothing runs here any more")

    def _tell(self, wish: Wish) -> None:
        count = len(self._running())
        how = "stopping at once" if wish.at_once else f"{count} running may end within {self._grace_s:g} s"
        again = "; Ctrl-C again stops at once" if wish.why == "SIGINT" else ""
        logger.warning("%s: nothing new is taken, %s%s.", wish.why, how, again)
        signals.worker_shutting_down.send(
            sender=self._worker, sig=wish.why, how="Cold" if wish.at_once else "Warm", exitcode=wish.code
        )

    def _hurry(self, within_s: float) -> Wish | None:
        """A wish to end at once, if one comes within this time."""
        try:
            wish = self._wishes.get(timeout=within_s)
        except Empty:
            return None
        return wish if wish.at_once else None

    def _leave(self, sender: Any, **_: Any) -> None:
        """Celery has ended. Python's own end is left out: it joins threads, and nothing could cut it off."""
        atexit._run_exitfuncs()  # noqa: SLF001  what is to be written at the end, the logs too
        os._exit(sender.exitcode or 0)

    def _hand_back(self) -> None:
        """Stop what runs; it keeps its text so far and goes back to its queue.

        What ignores that ends with this process, at once: an orderly end would wait for its thread.
        """
        late = self._running()
        logger.warning("Giving back %d runs that did not end in time.", len(late))
        self._stop_runs()
        wait(late, timeout=HAND_BACK_S)
        if not (ids := self._ids()):
            return
        leases = Transport.leases
        tags = [tag for tag, task in leases.held.items() if task.id in ids]
        told = threading.Event()

        def give_back() -> None:
            with suppress(*unavailable):
                leases.give_back(*tags, *leases.idle)
                told.set()

        # in a thread of its own, for Redis may hang
        threading.Thread(target=give_back, name="gaelp-give-back", daemon=True).start()
        told.wait(FORCE_S)
        became = "were given back to their queues" if told.is_set() else "go back as their leases run out"
        if self._owns_process:
            self._code = self._code if told.is_set() else self._code or 1
            self._exit(f"{len(ids)} tasks did not stop when they were asked to; they {became}")
        logger.warning("%d tasks did not stop when they were asked to; they %s.", len(ids), became)

    def _end_for_sure(self, ends: float) -> None:
        """Set the last resorts for a grace that is over then."""
        self._gone_at = ends + GONE_S
        if self._owns_process:
            with suppress(OSError, ValueError, AttributeError):  # there may be no standard error
                left_s = ends + GONE_AT_LAST_S - monotonic()
                faulthandler.dump_traceback_later(left_s, exit=True, file=sys.__stderr__ or sys.stderr)

    def _exit(self, why: str) -> NoReturn:
        with suppress(OSError):
            os.write(2, f"gaelp worker {self._worker}: {why}.\n".encode())
        os._exit(self._code)


@Panel.register(type="control")
def shutdown(state: Any, msg: str = "control shutdown", **_: Any) -> Any:
    """Shutdown worker(s): as SIGTERM does."""
    state.consumer.pool.drain.ask(msg)
