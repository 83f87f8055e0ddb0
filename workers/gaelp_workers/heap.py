"""Gives what this process needs no more back to its node, where models can use it.

Python looks for cycles only when there are a quarter more objects than before, and glibc keeps what was freed
on many threads (docs/reliability.md, Soak).
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from typing import cast

from gaelp_tasks.runtime import going_on

__all__ = ["give_back", "keep_lean"]

EVERY_S = 60.0

Trim = Callable[[int], int]


def _trim() -> Trim | None:
    """Glibc's malloc_trim(3), which locks a heap for a few milliseconds; None with another C library."""
    return cast("Trim | None", getattr(ctypes.CDLL(None), "malloc_trim", None))


def give_back() -> bool:
    """Give free memory back; whether there was any, or False where the C library cannot do it.

    Streams stand still for the 10 ms that it takes: what the imports brought is frozen (Worker.start).
    """
    gc.collect()
    trim = _trim()
    return trim is not None and trim(0) == 1


async def keep_lean() -> None:
    """Give back now and then, until cancelled."""
    while going_on():
        await asyncio.sleep(EVERY_S)
        await asyncio.to_thread(give_back)
