"""Planted bugs: each a small change to the real code that some seed must catch."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from gaelp_tasks import sweeping
from gaelp_tasks.lifecycle import Invariant
from gaelp_tasks.scripts import Script
from gaelp_tasks.streams import End, StreamWriter, TokenStream, parse
from gaelp_tasks.tasks import settlement, walk
from gaelp_tasks.tasks.base import ModelTask
from gaelp_workers import leases
from simulation import world
from simulation.ours import LEASE_S
from simulation.server import Server
from simulation.worker import Job, Worker
from simulation.world import Simulation


class Plant(NamedTuple):
    """A bug, and the invariants of which one must be seen broken."""

    bug: Callable[[], AbstractContextManager[Any]]
    caught_by: set[Invariant]
    steps: int = 150  #: of a seed, so that at least one seed of four catches it


def script(name: str, old: str, new: str) -> Callable[[], AbstractContextManager[Any]]:
    """A script with a piece of its text changed."""
    home = sweeping if name == "SWEEP" else leases
    text = getattr(home, name)
    assert old in text, f"{name} has no «{old}» any more: plant this bug anew"
    changed = Script(text.replace(old, new))
    changed.sha = hashlib.sha1(changed.encode(), usedforsecurity=False).hexdigest()

    @contextmanager
    def bug() -> Iterator[None]:
        known = tuple(changed if one is text else one for one in leases.ALL)
        with patch.object(home, name, changed), patch.object(leases, "ALL", known):
            yield

    return bug


@contextmanager
def local_clock() -> Iterator[None]:
    """Every script believes its caller's clock."""
    with (
        script("CLAIM", "redis.call('TIME')", "{ redis.call('GET', 'caller'), 0 }")(),
        script("RENEW", "redis.call('TIME')", "{ redis.call('GET', 'caller'), 0 }")(),
        script("SWEEP", "redis.call('TIME')", "{ redis.call('GET', 'caller'), 0 }")(),
        patch.object(Server, "asks_callers", True),
    ):
        yield


@contextmanager
def ack_before_settle() -> Iterator[None]:
    begin = Worker._begin

    def early(self: Worker, job: Job) -> None:
        self.leases.done(job.claimed.tag)
        begin(self, job)

    with patch.object(Worker, "_begin", early):
        yield


@contextmanager
def snooze_spends() -> Iterator[None]:
    again = ModelTask._again

    def spends(self: Any, after_s: float, error: Exception, *, spent: int) -> None:
        again(self, after_s, error, spent=1)

    with patch.object(ModelTask, "_again", spends):
        yield


def often(
    bug: Callable[[], AbstractContextManager[Any]], workers: int = world.WORKERS, **kinds: int
) -> Callable[[], AbstractContextManager[Any]]:
    """The bug in a world of these steps alone, so that what it needs is no chance in a thousand."""

    @contextmanager
    def bug_and_world() -> Iterator[None]:
        steps = {kind: kinds.get(kind.replace(" ", "_"), 0) for kind in world.KINDS}
        with bug(), patch.dict(world.KINDS, steps), patch.object(world, "WORKERS", workers):
            yield

    return bug_and_world


@contextmanager
def deaths_while_telling() -> Iterator[None]:
    """Who is killed has begun what is answered already: it tells that, or has just told it."""
    kill = Simulation._kill

    def aimed(self: Simulation, _: Worker) -> None:
        for worker in self._workers:
            if any(job.walking and job.run.id in self.judge.answers for job in worker.jobs.values()):
                kill(self, worker)
                break

    with patch.object(Simulation, "_kill", aimed):
        yield


@contextmanager
def frozen_before_the_end() -> Iterator[None]:
    """Who is frozen, for longer than a lease, has all tokens of a run and not yet told its end."""

    def aimed(self: Simulation, _: Worker) -> None:
        for worker in self._workers:
            gates = [job.model.gate for job in worker.jobs.values() if job.walking and not job.walking.done()]
            if worker.frozen_until < self.clock() and any(gate and gate.done() for gate in gates):
                worker.frozen_until = self.clock() + 2 * LEASE_S + 2.0
                self.note(f"{worker.name} is frozen until {worker.frozen_until % 100_000:.3f}")
                break

    with patch.object(Simulation, "_freeze", aimed):
        yield


@contextmanager
def all_refused_count() -> Iterator[None]:
    with patch.object(StreamWriter, "_overtaken", nobody_overtakes), frozen_before_the_end():
        yield


@contextmanager
def one_look_back() -> Iterator[None]:
    with patch.object(settlement, "earlier_end", newest_entry), deaths_while_telling():
        yield


@contextmanager
def no_look_back() -> Iterator[None]:
    with patch.object(walk, "told_before", nothing_told), deaths_while_telling():
        yield


async def newest_entry(stream: TokenStream, at: Any) -> End | None:
    before = await at.redis.xrevrange(stream.key, max=f"({stream.claim}-0", count=1)
    event = parse(*before[0]) if before else None
    return event if isinstance(event, End) else None


async def nothing_told(stream: Any, at: Any, **_: Any) -> None:
    """Every run is the first."""


async def admits_all(run: Any, at: Any) -> None:
    """What was cancelled runs."""


async def nobody_overtakes(self: Any, stream: Any) -> bool:
    return False


def first_claim(self: StreamWriter, invocation_id: str, claim: int) -> Any:
    return real_open(self, invocation_id, 1)


real_open = StreamWriter.open

PLANTS = {
    "a refused write counts as written": Plant(
        often(all_refused_count, workers=2, turn=60, time=20, publish=3, freeze=20),
        {Invariant.ONE_ANSWER},
        250,
    ),
    "streams do not know the claim": Plant(
        often(
            lambda: patch.object(StreamWriter, "open", first_claim),
            workers=2,
            turn=60,
            time=25,
            publish=4,
            kill=8,
        ),
        {Invariant.ONE_ANSWER, Invariant.FENCED, Invariant.KEPT, Invariant.NOT_AGAIN},
    ),
    "no claim number": Plant(
        script(
            "CLAIM",
            "local value = redis.pcall('INCR', key)",
            "redis.call('SETNX', key, 1) local value = tonumber(redis.call('GET', key))",
        ),
        {Invariant.NUMBERS_GROW},
    ),
    "acknowledged before it is settled": Plant(ack_before_settle, {Invariant.KEPT}),
    "the caller's clock in the scripts": Plant(
        local_clock,
        {Invariant.LIVE_LEASE, Invariant.NOT_EARLY, Invariant.NOT_LATE, Invariant.SETTLES},
    ),
    "a sweep pushes without removing": Plant(
        script("SWEEP", "redis.call('HDEL', KEYS[1], tag)", ""), {Invariant.ONE_PLACE}
    ),
    "a sweep takes leases that go on": Plant(
        script("SWEEP", "KEYS[2], '-inf', now,", "KEYS[2], '-inf', now + 4800,"), {Invariant.LIVE_LEASE}
    ),
    "a sweep drops what is due": Plant(
        script("SWEEP", "redis.call('LPUSH', about['queue'], message)", ""),
        {Invariant.LEGAL_MOVE, Invariant.KEPT},
    ),
    "a claim does not look at the eta": Plant(
        script("CLAIM", "local parked = due and due > now", "local parked = false"), {Invariant.NOT_EARLY}
    ),
    "a claim notes nothing": Plant(
        script("CLAIM", "redis.call('HSET', KEYS[1], tag,", "local _ = string.format('%s%s', tag,"),
        {Invariant.KEPT, Invariant.LEGAL_MOVE},
    ),
    "a renewal revives what was swept": Plant(
        often(script("RENEW", "if swept then", "if false then"), turn=60, time=30, publish=6, freeze=4),
        {Invariant.NOT_REVIVED},
    ),
    "giving back loses the message": Plant(
        often(
            script("GIVE_BACK", "redis.call('RPUSH', about['queue'], string.sub(record, line + 1))", ""),
            turn=75,
            time=8,
            publish=8,
            stop=9,
        ),
        {Invariant.KEPT, Invariant.LEGAL_MOVE},
    ),
    "an answer that was told is made again": Plant(
        often(no_look_back, workers=1, turn=70, time=10, publish=10, kill=10),
        {Invariant.ONE_ANSWER, Invariant.NOT_AGAIN},
        200,
    ),
    "only the newest entry tells what was told": Plant(
        often(one_look_back, workers=2, turn=60, time=25, publish=5, kill=12),
        {Invariant.ONE_ANSWER, Invariant.NOT_AGAIN},
        250,
    ),
    "a cancel is not looked at before the start": Plant(
        often(lambda: patch.object(walk, "admit", admits_all), turn=75, time=5, publish=8, cancel=12),
        {Invariant.CANCELLED},
    ),
    "a message is claimed while another of its id runs": Plant(
        script("CLAIM", "if runs(headers['id']) then", "if false then"), {Invariant.ONE_HOLDER}
    ),
    "what is sorted gets lost": Plant(
        script("SORT", "redis.pcall('LPUSH', KEYS[i + 1], message)", "1"),
        {Invariant.KEPT, Invariant.LEGAL_MOVE},
    ),
    "what saw its workers die gets lost": Plant(
        often(  # two deaths
            script("CLAIM", "redis.call('LPUSH', KEYS[7],", "local _ = string.format('%s',"),
            turn=60,
            time=30,
            publish=2,
            kill=12,
        ),
        {Invariant.KEPT, Invariant.LEGAL_MOVE},
    ),
    "poison gets lost": Plant(
        often(  # three deaths of one message's workers
            script("SWEEP", "redis.call('HSET', KEYS[6], tag,", "local _ = string.format('%s',"),
            turn=60,
            time=30,
            publish=2,
            kill=20,
        ),
        {Invariant.KEPT, Invariant.LEGAL_MOVE},
        250,
    ),
    "having no room spends an attempt": Plant(
        often(snooze_spends, workers=1, turn=85, time=5, publish=10),
        {Invariant.ATTEMPTS},
        250,
    ),
}
