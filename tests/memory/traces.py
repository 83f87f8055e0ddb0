"""What happens to a node, decided by a seed: its models, its jobs, and what others do to its memory."""

from random import Random
from typing import NamedTuple

from gaelp_tasks.models.invocation import Tier
from gaelp_workers.ledger import Footprint

GB = 10**9
LENGTH_S = 240.0
RESERVE_BYTES = 2 << 30
OTHERS_SHARE = 0.5  #: of a node's memory: others never hold more
UNLOAD_BYTES_S = 20 * GB  #: as fast as a killed server's pages are given back


class Model(NamedTuple):
    """A model as the node tells of it, and as it really is."""

    name: str
    footprint: Footprint  #: the estimate
    weights_bytes: int  #: real ones, taken evenly over `load_s`
    kv_bytes: int  #: real, all slots, taken at the end of the load within `kv_s`
    load_s: float
    kv_s: float
    unload_s: float  #: from the request until pages begin to come back
    growth_bytes: int  #: at the end of each run, up to ten times: prompt caches

    @property
    def true_bytes(self) -> int:
        """Of the model just loaded."""
        return self.weights_bytes + self.kv_bytes


class Job(NamedTuple):
    """One invocation."""

    id: str
    model: str
    tier: Tier
    at_s: float
    lasts_s: float  #: once it runs


class Trace(NamedTuple):
    """One node for a while."""

    seed: int
    total_bytes: int
    models: dict[str, Model]
    jobs: list[Job]  #: by arrival
    others: list[tuple[float, int]]  #: memory of others, linear between these moments
    theirs: Model | None  #: a model that somebody else has loaded on the same server
    sees_loads: bool  #: a probe sees what a load holds so far
    length_s: float = LENGTH_S
    ends_when_done: bool = False  #: once every job is; else only with its time


def trace(seed: int) -> Trace:
    """The trace of a seed."""
    rng = Random(seed)
    total = rng.choice([16, 32, 64]) * GB
    models = {f"m{number}": model(rng, f"m{number}", total) for number in range(rng.choice([3, 4, 4, 5]))}
    theirs = model(rng, "theirs", total // 4) if rng.random() < 0.25 else None
    others = foreign(rng, total, int(total * rng.uniform(0.02, 0.1)))
    return Trace(seed, total, models, jobs(rng, list(models)), others, theirs, rng.random() < 0.7)


def restless(seed: int) -> Trace:
    """The same trace, but others take and give back all the time at 6 GB/s."""
    quiet, rng = trace(seed), Random(seed)
    total, base = quiet.total_bytes, quiet.others[0][1]
    size, at_s = int(rng.uniform(0.08, 0.2) * total), 10.0
    rise_s, rest_s = size / (6 * GB), rng.uniform(1.0, 2.5)
    others = [(0.0, base)]
    while at_s < LENGTH_S - 20.0:
        full_s, falls_s = at_s + rise_s, at_s + rise_s + rest_s
        others += [(at_s, base), (full_s, base + size), (falls_s, base + size), (falls_s + rise_s, base)]
        at_s = falls_s + rise_s + rest_s
    return quiet._replace(others=others)


def model(rng: Random, name: str, total: int) -> Model:
    """A model of 1 GB up to 35 % of the node; its true size is 0.7 to 1.6 times the estimate."""
    estimate = rng.uniform(GB, 0.35 * total) if total > 3 * GB else 0.5 * GB
    slots = rng.choice([1, 2, 2, 4])
    kv = estimate * rng.uniform(0.1, 0.4)
    footprint = Footprint(int(estimate - kv), int(kv / slots), slots)
    wrong = rng.uniform(0.7, 1.1) if rng.random() < 0.5 else rng.uniform(1.0, 1.6)
    true = footprint.total_bytes * wrong
    true_kv = kv * wrong
    return Model(
        name,
        footprint,
        int(true - true_kv),
        int(true_kv),
        load_s=rng.uniform(0.5, 12.0),
        kv_s=rng.uniform(0.05, 0.3),
        unload_s=rng.uniform(0.05, 0.3),
        growth_bytes=int(true * rng.choice([0.0, 0.005, 0.01])),
    )


def jobs(rng: Random, models: list[str]) -> list[Job]:
    """Bursts of 5 to 25 jobs of a tier, some for one model, some for all."""
    found = []
    for burst in range(rng.randint(4, 12)):
        at_s = rng.uniform(0.0, LENGTH_S * 0.8)
        tier = rng.choice(list(Tier))
        names = [rng.choice(models)] if rng.random() < 0.3 else models
        longest_s = rng.choice([5.0, 20.0, 60.0])
        for number in range(rng.randint(5, 25)):
            lasts_s = rng.uniform(2.0, longest_s)
            one = Job(f"{burst}.{number}", rng.choice(names), tier, at_s + rng.uniform(0, 2), lasts_s)
            found.append(one)
    return sorted(found, key=lambda job: job.at_s)


def foreign(rng: Random, total: int, base: int) -> list[tuple[float, int]]:
    """Others take 2 to 22 % of the node at 0.5, 2 or 6 GB/s, hold it for 2 to 20 s, and give it back as fast.

    In one trace of four they also take and give back again and again, for a while. One rise at a time, so
    that 6 GB/s is the most; what is held may add up.
    """
    bursts = [
        (
            rng.uniform(2.0, LENGTH_S - 5.0),
            rng.uniform(0.02, 0.22),
            rng.choice([0.5, 2.0, 6.0]),
            rng.uniform(2.0, 20.0),
        )
        for _ in range(rng.randint(4, 14))
    ]
    if rng.random() < 0.25:
        share, rate = rng.uniform(0.08, 0.2), rng.choice([2.0, 6.0])
        rise_s, rest_s = share * total / (rate * GB), rng.uniform(1.0, 3.0)
        begins, wave_s = rng.uniform(10.0, 60.0), 2 * (rise_s + rest_s)
        count = int(rng.uniform(40.0, LENGTH_S - 70.0) / wave_s)
        bursts = [burst for burst in bursts if not begins - 30.0 < burst[0] < begins + count * wave_s]
        bursts += [(begins + number * wave_s, share, rate, rest_s) for number in range(count)]
    turns: list[tuple[float, float, int]] = []  # begins, lasts, change
    free_at = 0.0
    held: list[tuple[float, int]] = []  # until, bytes
    for begins, share, rate, stays_s in sorted(bursts):
        size = int(share * total)
        at_s = max(begins, free_at)
        held = [(until, was) for until, was in held if until > at_s]
        lasts_s = size / (rate * GB)
        falls_at = at_s + lasts_s + stays_s
        if base + sum(was for _, was in held) + size > OTHERS_SHARE * total or falls_at > LENGTH_S:
            continue
        free_at = at_s + lasts_s
        held.append((falls_at + lasts_s, size))
        turns += [(at_s, lasts_s, size), (falls_at, lasts_s, -size)]
    moments = sorted({0.0} | {at for at, lasts, _ in turns} | {at + lasts for at, lasts, _ in turns})
    return [
        (at, base + sum(int(change * _part(at - since, lasts)) for since, lasts, change in turns))
        for at in moments
    ]


def _part(passed_s: float, lasts_s: float) -> float:
    return min(1.0, max(0.0, passed_s / lasts_s))
