"""Run a function beside the loop: in a thread that nobody has to wait for."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

__all__ = ["beside", "in_thread"]

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
