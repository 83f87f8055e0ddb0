"""Our bootsteps in Celery's consumer. They touch private names of celery and kombu; each has a test."""

import asyncio
import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from time import sleep
from typing import Any
from uuid import uuid4

from celery import bootsteps

from gaelp_tasks import counts
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.connections import connect, unavailable
from gaelp_tasks.dead_letters import POISON, give_up
from gaelp_tasks.runtime import shared_runtime
from gaelp_tasks.sweeping import LOOKS_PER_LEASE, claims_ttl_s, connection_name
from gaelp_tasks.tasks.resources import shared_resources
from gaelp_tasks.tasks.walk import AWAY_S
from gaelp_tasks.threads import beside
from gaelp_tasks.training.places import shared_places
from gaelp_workers.dispatch import CLOSED, JOBS, Capacity, free
from gaelp_workers.heap import keep_lean
from gaelp_workers.keeper import Keeper
from gaelp_workers.known import KnownQueues
from gaelp_workers.memory import memory_of
from gaelp_workers.monitor import announce, hear_cancellations, sweep_cancellations
from gaelp_workers.owners import allowed, names_of_pools, owners_of, queued
from gaelp_workers.places import places_of
from gaelp_workers.preemption import may_go
from gaelp_workers.reaping import CountedLeases
from gaelp_workers.transport import Transport
from gaelp_workers.turns import Turns

__all__ = ["Holding", "NodeDuties"]

logger = logging.getLogger(__name__)

GOODBYE_S = 0.5  #: at most; without it the process often ends first, and its nodes look alive for seconds

TASKS = "celery.worker.consumer.tasks:Tasks"


def stop_run(task_id: str) -> None:
    """Stop a run whose lease has ended."""
    shared_resources().runs.stop(task_id, Reason.LEASE)


def note_preemption(app: Any, task_id: str, kept_s: float) -> None:
    """Remember that a run had to make way, for whichever worker claims it next."""
    sleep(AWAY_S / 2)  # and well before its message is back in its queue
    key = app.keys.preempted(task_id)
    with suppress(*unavailable), app.redis.pipeline() as pipe:  # then it may have to once more than others
        pipe.incr(key)
        pipe.pexpire(key, int(kept_s * 1000))
        pipe.execute()
    counts.count(app, counts.PREEMPTED)


def make_way(task_ids: Iterable[str]) -> None:
    """Stop those of these runs of this worker that may be preempted at all."""
    wanted = set(task_ids)
    for tag, task in Transport.leases.running.items():
        if task.id in wanted and may_go(task):
            Transport.preempt(tag)


class Holding(bootsteps.StartStopStep):
    """Fetch by claims while a slot is free, and keep the leases of what is held.

    What runs outlives a lost connection under its lease; what was only reserved is given back, for Celery
    forgets it.
    """

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        settings = c.app.settings
        holder = uuid4().hex[:16]
        same_redis = settings.results_url == settings.broker_url
        self._leases = CountedLeases(
            c.app.redis,
            c.app.keys,
            holder=holder,
            ttl_s=settings.lease_ttl_s,
            claims_ttl_s=claims_ttl_s(settings),
            poison_deaths=settings.poison_deaths,
            results=c.app.backend.get_key_for_task(".").decode().removesuffix(".") if same_redis else "",
            tenant_max=settings.tenant_max_running,
            on_reaped=lambda taken: beside(counts.count, c.app, counts.REAPED, taken),
        )
        self._places = shared_places()[0] = places_of(settings)
        known = KnownQueues(self._leases, lambda: shared_resources().models, runs_jobs=self._places.count > 0)
        self._keeper = Keeper(
            self._leases,
            connect(settings, name=connection_name(holder), answer_s=settings.lease_ttl_s / 5),
            every_s=settings.lease_ttl_s / LOOKS_PER_LEASE,
            on_lost=stop_run,
            on_beat=known.look,
            on_poison=lambda task_id: beside(give_up, c.app, task_id, POISON),
        )
        Transport.leases = self._leases
        Transport.known = known
        Transport.on_refused = partial(beside, give_up, c.app)
        Transport.capacity = lambda: self.capacity(c)
        Transport.preempt = partial(self.preempt, c.app)
        Transport.writing = lambda: shared_resources().demand.writing
        Transport.turns = Turns(settings.max_wait_s)
        Transport.runs_jobs = self._places.count > 0
        Transport.most_bytes = int(settings.max_message_bytes)

    def capacity(self, c: Any) -> Capacity:
        """What may be held here at once; `pool.limit`, the slots of each model, may move at any time."""
        if c.pool.closed:
            return CLOSED
        at = shared_resources()
        slots = allowed(at, c.owners, c.pool.limit)
        names = names_of_pools(at, c.owners)
        others = at.slots(c.pool.limit)
        if Transport.known.jobs_seen:
            slots[JOBS] = self._places.open
        return Capacity(slots, names, others, c.pool.seats if others > 0 else 0)

    def preempt(self, app: Any, tag: str) -> None:
        """Stop a run for a higher tier; its message comes back to its queue, and it goes on from its text."""
        task = self._leases.held.get(tag)
        if task is not None:
            self._leases.leaves(tag)
            shared_resources().runs.stop(task.id, Reason.PREEMPTION)
            beside(note_preemption, app, task.id, self._leases.claims_ttl_s)

    def start(self, c: Any) -> None:
        """Begin to renew; after a reconnect the keeper is still there."""

        def open_queues() -> list[str]:
            consumer = c.task_consumer  # None while the connection is down
            room = free(self._leases.held.values(), self.capacity(c))
            return [queue.name for queue in consumer.queues] if consumer and room.seats > 0 else []

        shared_resources().seats.open_queues = open_queues
        shared_resources().lively = lambda: self._keeper.lively
        if not self._keeper.is_alive():
            self._leases.load()
            self._keeper.start()

    def stop(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """The connection is gone, or the worker stops: what does not run yet is for others."""
        with suppress(*unavailable):  # then their leases run out
            self._leases.give_back(*self._leases.idle)

    def shutdown(self, c: Any) -> None:
        """Nothing runs here any more."""
        self.stop(c)
        self._keeper.stop()


class NodeDuties(bootsteps.StartStopStep):
    """What the node does besides running tasks, on the loop of this process."""

    requires = (TASKS,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._duties: Future[None] | None = None
        self._ended = threading.Event()
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        """Begin; after a reconnect they simply go on."""
        if self._duties is None:
            shared_resources().worker = c.hostname
            self._duties = asyncio.run_coroutine_threadsafe(self._serve(c), shared_runtime().loop)

    async def _serve(self, c: Any) -> None:
        at = shared_resources()
        try:
            made = memory_of(at.settings)
            memories = {node.url: made(node.url) for node in at.nodes}
            owners = owners_of(
                c.hostname,
                at,
                memories,
                lambda: c.pool.limit,
                lambda: queued(at, c.owners, Transport.known),
                make_way,
            )
            c.owners.update(owners)
            ends = await asyncio.gather(
                announce(
                    c.hostname,
                    at,
                    lambda: c.pool.limit,
                    memories.__getitem__,
                    lambda: c.pool.closed,
                    owners,
                    Transport.leases.holder,
                ),
                *(owner.serve() for owner in owners.values()),
                hear_cancellations(at),
                sweep_cancellations(at),
                keep_lean(),
                return_exceptions=True,
            )
            for error in filter(None, ends):
                logger.error("A duty of this worker has ended: %s", error)
        finally:
            self._ended.set()

    def shutdown(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """End, once nothing runs here any more, and take back what was announced, if Redis is there."""
        if self._duties is not None:
            self._duties.cancel()
            self._ended.wait(GOODBYE_S)
