"""Announces this worker's nodes: samples each of them every poll and keeps its snapshot in Redis."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import NamedTuple

from gaelp_tasks.cancellation import listen, sweep
from gaelp_tasks.connections import unavailable
from gaelp_tasks.errors import NodeError
from gaelp_tasks.models.capacity import NodeSnapshot, Resident
from gaelp_tasks.runtime import going_on
from gaelp_tasks.tasks.resources import Node, Resources
from gaelp_workers.dispatch import names_of
from gaelp_workers.health import Pulse
from gaelp_workers.memory import Reading
from gaelp_workers.owner import Owner

__all__ = ["Life", "announce", "hear_cancellations", "sample", "sweep_cancellations"]

logger = logging.getLogger(__name__)

LIVES = 4  #: polls that may fail before the announcement lapses
CALM_S = 0.1  #: after slots have changed; they may change again at once
QUESTION_S = 5.0  #: a node that answers later than this counts as unwell
RELEASE = version("gaelp-tasks")

#: what a node's memory is, given the models that its server lists; None while it does not answer
Measure = Callable[[Sequence[Resident] | None], Reading]


class Life(NamedTuple):
    """What all nodes of a worker tell alike, from its start to its end."""

    worker: str  #: Celery's name of it
    started_at: float  #: Unix time
    holder: str = ""  #: with what the names of its leases begin


async def sample(
    life: Life,
    at: Resources,
    node: Node,
    slots: int,
    memory: Measure,
    pulse: Pulse,
    closed: str = "",
) -> NodeSnapshot:
    """The node right now; a server that does not answer is not healthy, which is no error here."""
    server, trouble = "", ""
    models: tuple[str, ...] = ()
    resident: tuple[Resident, ...] | None = None
    try:
        async with asyncio.timeout(QUESTION_S):
            server = await node.client.version()
            asked_at = at.tick()
            listed = await node.client.models()
            at.digests.learn(node.url, listed, asked_at)
            node.models = models = tuple(model.name for model in listed)
            resident = await node.client.resident()
    except NodeError as error:
        trouble = str(error)
    except TimeoutError:
        trouble = f"{node.url} did not answer within {QUESTION_S:g} s."
    loaded = tuple(model.name for model in resident or ())
    running = at.running()
    here, unplaced = running[node.url], tuple(running[""])
    embedding = tuple(name for name in (*here, *unplaced) if name in at.seats.taken)
    if not trouble:
        pulse.feel(loaded, free=len(here) + len(unplaced) - len(embedding) < slots)
        trouble = pulse.trouble
    node.well = not trouble
    reading = memory(resident)
    return NodeSnapshot(
        worker=life.worker,
        pid=os.getpid(),
        url=node.url,
        healthy=not trouble,
        trouble=trouble,
        version=server,
        models=models,
        loaded=loaded,
        slots=slots,
        running=tuple(here),
        tokens=tuple(here.values()),
        unplaced=unplaced,
        embedding=embedding,
        closed=closed,
        tokens_per_s=round(node.meter.rate(at.tick()), 1),
        memory=reading.memory,
        held_bytes=reading.held_bytes,
        release=RELEASE,
        num_parallel=at.settings.num_parallel,
        num_ctx=at.settings.num_ctx,
        holder=life.holder,
        started_at=life.started_at,
        seen_at=at.now(),
    )


async def announce(
    worker: str,
    at: Resources,
    slots: Callable[[], int],
    memory_of: Callable[[str], Measure],
    closed: Callable[[], str] = str,
    owners: Mapping[str, Owner] = MappingProxyType({}),
    holder: str = "",
) -> None:
    """Publish a snapshot of each node each poll, until cancelled; then take them back.

    `memory_of` makes what measures the memory of a node, by its address. `closed` tells why the worker takes
    nothing new, '' while it does; `holder` is with what the names of its leases begin.
    """
    life = Life(worker, at.now(), holder)
    async with asyncio.TaskGroup() as group:  # a node that hangs must not delay the others
        for number, node in enumerate(at.nodes):
            mine = partial(_share, at, slots, number)
            memory, owner = memory_of(node.url), owners.get(node.url)
            group.create_task(_announce(life, at, node, mine, memory, closed, owner))


def _share(at: Resources, slots: Callable[[], int], number: int) -> int:
    return at.shares(slots())[number]


async def _announce(
    life: Life,
    at: Resources,
    node: Node,
    slots: Callable[[], int],
    memory: Measure,
    closed: Callable[[], str],
    owner: Owner | None,
) -> None:
    key = at.keys.node(life.worker, node.url)
    poll_s = at.settings.poll_interval_s
    lives_ms = int((LIVES * poll_s + QUESTION_S) * 1000)
    pulse = Pulse(at, node)
    trouble = ""
    try:
        while going_on():
            share = slots()  # of each model; what memory leaves of that its owner tells
            allowed = share if owner is None else owner.slots(share)
            snapshot = await sample(life, at, node, allowed, memory, pulse, closed())
            if owner is not None:
                snapshot = snapshot.model_copy(update={"by_model": owner.by_model()})
            trouble = _log_change(trouble, snapshot)
            try:
                async with at.redis.pipeline(transaction=False) as pipe:
                    pipe.set(key, snapshot.model_dump_json(), px=lives_ms)
                    if names := names_of(node.models):
                        pipe.zadd(at.keys.models, dict.fromkeys(names, int(snapshot.seen_at * 1000)))
                    await pipe.execute()
            except unavailable as error:
                logger.warning("Cannot announce this node, Redis does not answer: %s", error)
            await _next(poll_s, owner)
    finally:
        await pulse.stop()
        with suppress(*unavailable):
            await at.redis.delete(key)


async def _next(poll_s: float, owner: Owner | None) -> None:
    """Wait for the next poll, or until the slots have changed: people look at them while memory goes."""
    if owner is None:
        await asyncio.sleep(poll_s)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(poll_s):
            await owner.news.wait()
            owner.news.clear()
            await asyncio.sleep(min(poll_s, CALM_S))


def _log_change(before: str, snapshot: NodeSnapshot) -> str:
    """Say once that a node became unwell or well; the trouble to compare the next one with."""
    if snapshot.trouble and not before:
        logger.warning("Node %s is unwell: %s", snapshot.url, snapshot.trouble)
    elif before and not snapshot.trouble:
        logger.info("Node %s is well again.", snapshot.url)
    return snapshot.trouble


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
