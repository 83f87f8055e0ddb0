"""One asyncio loop per process, in a thread of its own: pooled connections stay valid from run to run."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

__all__ = ["Runtime", "going_on", "shared_runtime"]

T = TypeVar("T")


class Runtime:
    """A loop thread that runs coroutines for the threads of this process; it ends with the process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="gaelp-loop", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end on the loop; the calling thread waits.

        Raises RuntimeError when called from the loop itself, which would wait for ever.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("This is asynchronous code: await the coroutine instead of its sync wrapper.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what runs, stop the loop and its thread."""

        async def cancel_all() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@cache
def shared_runtime() -> Runtime:
    """The runtime of this process; a forked child gets one of its own."""
    return Runtime()


os.register_at_fork(after_in_child=shared_runtime.cache_clear)


def going_on() -> bool:
    """False once this task was cancelled: on Python 3.11 wait_for can swallow the cancel (cpython #86296)."""
    task = asyncio.current_task()
    return task is None or not task.cancelling()
