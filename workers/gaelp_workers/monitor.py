"""Announces this node: samples it each poll and keeps its snapshot in Redis while the worker lives."""

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress

from gaelp_tasks.cancellation import listen, sweep
from gaelp_tasks.connections import unavailable
from gaelp_tasks.errors import NodeError
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot
from gaelp_tasks.tasks.resources import Resources

__all__ = ["announce", "hear_cancellations", "sample", "sweep_cancellations"]

logger = logging.getLogger(__name__)

LIVES = 4  #: polls that may fail before the announcement lapses
QUESTION_S = 5.0  #: a node that answers later than this counts as unwell


async def sample(
    worker: str, at: Resources, slots: int, memory: Callable[[], MemorySnapshot], started_at: float
) -> NodeSnapshot:
    """The node right now; a server that does not answer is not healthy, which is no error here."""
    version, healthy = "", False
    models: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    with suppress(NodeError, TimeoutError):
        async with asyncio.timeout(QUESTION_S):
            version = await at.client.version()
            models = tuple(model.name for model in await at.client.models())
            loaded = await at.client.loaded()
            healthy = True
    return NodeSnapshot(
        worker=worker,
        pid=os.getpid(),
        url=at.node,
        healthy=healthy,
        version=version,
        models=models,
        loaded=loaded,
        slots=slots,
        running=at.runs.ids(),
        memory=memory(),
        started_at=started_at,
        seen_at=at.now(),
    )


def going_on() -> bool:
    """False once this task was cancelled: on Python 3.11 wait_for can swallow the cancel (cpython #86296)."""
    task = asyncio.current_task()
    return task is None or not task.cancelling()


async def announce(
    worker: str, at: Resources, slots: Callable[[], int], memory: Callable[[], MemorySnapshot]
) -> None:
    """Publish the snapshot each poll, until cancelled; then take it back."""
    started_at = at.now()
    key = at.keys.node(worker)
    poll_s = at.settings.poll_interval_s
    try:
        while going_on():
            snapshot = await sample(worker, at, slots(), memory, started_at)
            try:
                await at.redis.set(
                    key, snapshot.model_dump_json(), px=int((LIVES * poll_s + QUESTION_S) * 1000)
                )
            except unavailable as error:
                logger.warning("Cannot announce this node, Redis does not answer: %s", error)
            await asyncio.sleep(poll_s)
    finally:
        with suppress(*unavailable):
            await at.redis.delete(key)


async def hear_cancellations(at: Resources) -> None:
    """Stop runs as soon as somebody calls for it, until cancelled; reconnects."""
    while going_on():
        with suppress(*unavailable):
            await listen(at.redis, at.keys, at.runs)
        await asyncio.sleep(at.settings.poll_interval_s)


async def sweep_cancellations(at: Resources) -> None:
    """Look each poll for requests that this process could not hear, until cancelled."""
    while going_on():
        with suppress(*unavailable):
            await sweep(at.redis, at.keys, at.runs)
        await asyncio.sleep(at.settings.poll_interval_s)
