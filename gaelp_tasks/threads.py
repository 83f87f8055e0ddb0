"""Run a function beside the loop: in a thread that nobody has to wait for."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

__all__ = ["Crew", "beside", "in_thread"]

logger = logging.getLogger(__name__)


async def in_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What a function of somebody else's returns, in a thread of its own; raises what it raises.

    Not asyncio.to_thread: functions that hang would use up its few threads, and hold up the end of the
    process. One that wants to end the process fails with RuntimeError instead.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():  # cancelled meanwhile
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: Any = None
        failure: Exception | None = None
        try:
            result = context.run(function, *args, **kwargs)
        except StopIteration as error:  # a future cannot carry it
            failure = RuntimeError(f"it raised {error!r}")
        except Exception as error:  # noqa: BLE001  whoever waits gets it
            failure = error
        except BaseException as error:  # noqa: BLE001  such as SystemExit
            failure = RuntimeError(f"it raised {type(error).__name__}")
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name=f"gaelp-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await future


@cache
def _errands() -> "SimpleQueue[Callable[[], None]]":
    """What the one thread behind `beside` still has to do."""
    errands: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def serve() -> None:
        while True:
            try:
                errands.get()()
            except Exception:
                logger.exception("A task's end could not be told.")

    threading.Thread(target=serve, name="gaelp-beside", daemon=True).start()
    return errands


def beside(what: Callable[..., None], *given: Any) -> None:
    """Do it soon, on another thread: Celery's backend may wait for Redis; a loop or a sweep must not."""
    _errands().put(partial(what, *given))


class Crew:
    """A few threads that share their work, made when they are needed; `close()` ends them.

    Not ThreadPoolExecutor: a signal that ends the main thread while it starts one of those leaves a thread
    behind that the interpreter waits for, without end.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name, self._made = most, name, 0
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have one of them call it; one more thread where all are busy. From one thread at a time."""
        future: Future[Any] = Future()
        self._work.put((future, partial(function, *args)))
        if not self._idle.acquire(blocking=False) and self._made < self._most:
            self._made += 1
            threading.Thread(target=self._serve, name=f"{self._name}_{self._made}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let each end when the work before is done; nothing is submitted any more."""
        self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  whoever waits gets it
                    future.set_exception(error)
            del work, future, call  # else the last result lives on until the next
            self._idle.release()
        self._work.put(None)  # for the others
