"""What a soak does and when: pure, and the seed decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

__all__ = ["FAULTS", "Plan", "Strike", "strikes"]

#: each kind of trouble; what it is, is in faults.py
FAULTS = (
    "worker-kill",
    "worker-freeze",
    "worker-term",
    "beat-kill",
    "redis-kill",
    "redis-freeze",
    "node-cut",
    "node-kill",
    "memory-full",
    "database",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run of the soak; times are seconds."""

    seconds: float = 7200.0  #: of load; the drain comes after it
    every_s: float = 300.0  #: between two faults
    seed: int = 7
    rate: float = 3.0  #: invocations a second, of all tiers together
    workers: int = 3
    slots: int = 4  #: of each worker
    schedule_s: float = 60.0  #: between two runs of the schedule
    batch_every_s: float = 120.0  #: between two batches
    batch_lines: int = 20
    faults: Sequence[str] = FAULTS
    sample_s: float = 5.0  #: between two looks at processes
    kept_s: float = 600.0  #: GAELP_RESULT_TTL_S and GAELP_STREAM_TTL_S: Redis is full of them from then on
    warm_s: float = 300.0  #: of each life, which are not judged
    least_s: float = 600.0  #: of each life after that, or it is too short to be judged
    postgres: bool = True  #: where it is installed


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault of the plan."""

    at_s: float  #: after the load began
    fault: str


def strikes(plan: Plan) -> tuple[Strike, ...]:
    """One each `every_s`, the last one early enough to be got over under load.

    They are dealt from shuffled decks of all kinds: a run long enough has each, and none twice as often as
    another.
    """
    count = max(0, int(plan.seconds / plan.every_s + 1e-9) - 1)
    dealt = islice(_dealt(plan.faults, Random(plan.seed)), count)
    return tuple(Strike(number * plan.every_s, fault) for number, fault in enumerate(dealt, start=1))


def _dealt(faults: Sequence[str], rng: Random) -> Iterator[str]:
    while faults:
        yield from rng.sample(faults, k=len(faults))
