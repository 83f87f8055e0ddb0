"""Whether what a process has stays the same while it lives: pure arithmetic on samples.

A life begins with its process and ends with it; what a process needs to warm up (imports, threads, pools of
connections, caches) is left out. The rest of a life is cut into thirds, and the medians of the thirds count:
a peak while Redis is away, or a sample in the midst of one, moves no median.

**Growing** is what is higher at the end than in the beginning by more than a tolerance, and has grown in
both halves, each time by a quarter of it or more. A leak does. What does not: a step, as when a backlog after
a fault makes a pool of threads or the heap larger once; a cache that fills and is full. A step of more than
four tolerances counts as growing all the same, and so a leak that begins late is found once it is as large.

What was started again may fill up to where the life before it was flat: each connection comes back only when
its pool meets a peak again.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

__all__ = ["LIMITS", "Drift", "Limit", "Sample", "drifts", "judge"]

MIB = 1024**2
SHARE = 0.25  #: of the growth that each half must have at least
STEP = 4.0  #: tolerances that a single step may have
LEAST = 12  #: samples, four for each third


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one figure of one process."""

    process: str  #: worker-3, beat-a, redis ...
    life: int  #: its pid; 0 for what outlives its process, as Redis' data
    figure: str
    at: float  #: seconds of the monotonic clock
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How much of a figure is noise."""

    least: float  #: in its own unit
    share: float = 0.0  #: of what there was in the beginning
    told: str  #: why so much

    def tolerance(self, first: float) -> float:
        return max(self.least, self.share * first)


#: the figures that are judged; the reasons are those of docs/reliability.md
LIMITS: Mapping[str, Limit] = {
    "memory": Limit(
        least=8 * MIB,
        share=0.05,
        told="private bytes (USS): Python takes arenas of 1 MiB, and a heap gives nothing back that lies "
        "under what still lives",
    ),
    "descriptors": Limit(
        least=6, share=0.1, told="connections come and go with the load: Redis, nodes, database"
    ),
    "threads": Limit(least=6, share=0.1, told="a seat is a thread, and seats follow the load"),
    "used": Limit(
        least=16 * MIB,
        share=0.1,
        told="bytes of Redis' data and buffers less what is to be kept for a day of each task (KEPT_BYTES)",
    ),
    "everlasting": Limit(least=50, told="keys without an end"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What became of one figure in one life."""

    process: str
    life: int
    figure: str
    lived_s: float  #: that were looked at, after the warm-up
    first: float  #: median of the first third
    middle: float
    last: float
    tolerance: float
    growing: bool

    @property
    def grown(self) -> float:
        return self.last - self.first


def drifts(samples: Iterable[Sample], *, warm_s: float, least_s: float) -> list[Drift]:
    """Of each figure that is judged, in each life that went on for `least_s` after its first `warm_s`."""
    found: list[Drift] = []
    flat: dict[tuple[str, str], float] = {}  #: where earlier lives of a process came to rest
    for (process, figure, pid), series in _lives(samples):
        warm = [(at, value) for at, value in series if at >= series[0][0] + warm_s]
        if len(warm) < LEAST or warm[-1][0] - warm[0][0] < least_s:
            continue
        first, middle, last = thirds([value for _, value in warm])
        tolerance = LIMITS[figure].tolerance(first)
        rest = flat.get((process, figure), 0.0)
        growing = last > rest and judge(first, middle, last, tolerance)
        if not growing:
            flat[process, figure] = max(rest, last)
        found.append(
            Drift(
                process=process,
                life=pid,
                figure=figure,
                lived_s=warm[-1][0] - warm[0][0],
                first=first,
                middle=middle,
                last=last,
                tolerance=tolerance,
                growing=growing,
            )
        )
    return found


def _lives(samples: Iterable[Sample]) -> list[tuple[tuple[str, str, int], list[tuple[float, float]]]]:
    """What each process, figure and pid was at each time; of one process the earlier life first."""
    series = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.at):
        if sample.figure in LIMITS:
            series[sample.process, sample.figure, sample.life].append((sample.at, sample.value))
    return sorted(series.items(), key=lambda item: (item[0][:2], item[1][0]))


def thirds(values: Sequence[float]) -> tuple[float, float, float]:
    """The medians of the thirds of a series, in its order."""
    size = math.ceil(len(values) / 3)
    # a value that was there: half-way between two levels would pass for steady growth
    return median_low(values[:size]), median_low(values[size:-size]), median_low(values[-size:])


def judge(first: float, middle: float, last: float, tolerance: float) -> bool:
    """Whether that grows."""
    grown = last - first
    if grown <= tolerance:
        return False
    steady = min(middle - first, last - middle) >= SHARE * grown
    return steady or grown > STEP * tolerance
