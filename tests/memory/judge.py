"""What a simulated node has been through, and what was promised of it."""

from dataclasses import dataclass, field

from memory.traces import LENGTH_S

FLOOR_S = 1.0  #: free memory may be below the reserve for so long
EVICTION_S = 5.0  #: of a trace for each eviction, at the most


@dataclass
class Tally:
    """One node under one manager."""

    reserve_bytes: int
    kills: int = 0  #: by the kernel
    worst_s: float = 0.0  #: below the reserve at a stretch
    done: int = 0  #: jobs
    work_s: float = 0.0  #: of jobs that were finished
    cut: int = 0  #: runs that were stopped
    loads: int = 0
    evictions: int = 0  #: models that were unloaded for want of memory
    wasted: int = 0  #: loads that no run was started on
    broken: list[str] = field(default_factory=list)  #: what must never happen, in words
    _below_since: float | None = None

    def span(self, begins: float, before: float, ends: float, after: float) -> None:
        """Free memory went evenly from `before` to `after`."""
        floor = self.reserve_bytes
        if before >= floor and after >= floor:
            self._rise(begins)
            return
        if before < floor and self._below_since is None:
            self._below_since = begins
        if before >= floor > after:
            self._rise(begins)
            self._below_since = begins + (ends - begins) * (before - floor) / (before - after)
        elif before < floor <= after:
            self._rise(begins + (ends - begins) * (floor - before) / (after - before))
            return
        self._look(ends)

    def _look(self, now: float) -> None:
        if self._below_since is not None:
            self.worst_s = max(self.worst_s, now - self._below_since)

    def _rise(self, now: float) -> None:
        self._look(now)
        self._below_since = None


@dataclass
class Verdict:
    """One trace: ours, the seed's formula, and what the packer could do."""

    seed: int
    ours: Tally
    formula: Tally
    packer_s: float

    @property
    def broken(self) -> list[str]:
        """Promises about one trace that do not hold."""
        return promises_broken(self.ours)


def promises_broken(tally: Tally) -> list[str]:
    """What should not have happened on a node, in words."""
    found = list(tally.broken)
    if tally.kills:
        found.append(f"{tally.kills} kills for want of memory")
    if tally.worst_s > FLOOR_S:
        found.append(f"{tally.worst_s:.2f} s below the reserve")
    if tally.evictions > LENGTH_S / EVICTION_S:
        found.append(f"{tally.evictions} evictions: models come and go")
    return found


@dataclass
class Sum:
    """Many traces."""

    traces: int = 0
    below: int = 0  #: traces below the reserve for too long
    kills: int = 0
    worst_s: float = 0.0
    done: int = 0
    work_s: float = 0.0
    cut: int = 0
    loads: int = 0
    broken: int = 0  #: traces with anything that should not have happened

    def add(self, tally: Tally) -> None:
        """One more."""
        self.traces += 1
        self.below += tally.worst_s > FLOOR_S
        self.kills += tally.kills
        self.worst_s = max(self.worst_s, tally.worst_s)
        self.done += tally.done
        self.work_s += tally.work_s
        self.cut += tally.cut
        self.loads += tally.loads
        self.broken += bool(promises_broken(tally))

    def __str__(self) -> str:
        return (
            f"{self.below:4} traces below the reserve > {FLOOR_S:g} s, {self.kills:4} kills, "
            f"worst {self.worst_s:6.2f} s, {self.done} jobs = {self.work_s:.0f} s of work, "
            f"{self.cut} runs cut, {self.loads} loads"
        )
