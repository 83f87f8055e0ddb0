"""How tight memory is, how much of it to believe in, and when to look again. Pure."""

from enum import IntEnum
from math import exp
from typing import NamedTuple

__all__ = ["GIB", "Level", "Limits", "Trend", "believed", "felt", "foreseen", "level", "poll_s"]

GIB = 1 << 30
TIGHT_SHARE = 0.2  #: of all memory free; below it the fast poll holds
MEANT_TO_MOVE = 0.01  #: of the believed: a difference below it is none
LEAST_GAP_S = 0.02  #: between two readings that tell a rate; shorter ones tell noise


class Level(IntEnum):
    """How tight memory is; each does what those below it do, and more."""

    EASY = 0
    SOFT = 1  #: load nothing new; free slots of loaded models go on
    HARD = 2  #: admit nothing, unload until there is room again
    CRITICAL = 3  #: stop all, give everything back


class Limits(NamedTuple):
    """What the node's owner allows; shares are of all its memory. docs/controller.md has the reasons."""

    reserve_bytes: int = 2 * GIB  #: the safety floor
    safety_factor: float = 1.5  #: on estimates, until a load was measured
    soft_bytes: int = GIB  #: above the reserve: a load must leave this free
    soft_share: float = 0.05  #: the same as a share; the larger counts
    relief_share: float = 0.03  #: above a threshold that was crossed, before it counts as left
    critical_share: float = 0.25  #: of the reserve
    fill_bytes_s: float = 6e9  #: as fast as others may take memory
    react_s: float = 0.5  #: from the decision to unload until it shows
    smooth_s: float = 8.0  #: time constant of believing in memory that came back
    poll_s: float = 1.0
    fast_poll_s: float = 0.5
    least_poll_s: float = 0.05
    verify_s: float = 2.0  #: for unloaded memory to be seen again
    load_s: float = 600.0  #: for a load to end
    load_again_s: float = 10.0  #: after one that failed
    swap_s: float = 30.0  #: a model that is not loaded waits at most this long before a busy one is drained
    most_wait_s: float = 600.0  #: the same where higher tiers keep the busy ones; inf: no maximum

    def soft_line(self, total_bytes: int) -> int:
        """Free bytes that a load must leave."""
        return self.reserve_bytes + max(self.soft_bytes, int(self.soft_share * total_bytes))

    def relief(self, total_bytes: int) -> int:
        """Bytes of hysteresis."""
        return int(self.relief_share * total_bytes)

    @property
    def critical_bytes(self) -> int:
        """Free bytes below which everything stops."""
        return int(self.reserve_bytes * self.critical_share)


class Trend(NamedTuple):
    """The last reading that told a rate, and what it told."""

    at_s: float
    free_bytes: int
    ours_bytes: int  #: held by models of ours, as far as that can be seen
    others_bytes_s: float = 0.0  #: taken by others since the reading before; never below 0
    credit_bytes: int = 0  #: taken since loads began that nothing measures, and counted as theirs
    sudden_bytes: int = 0  #: the same that may have been their KV caches: it tells no rate of others


def believed(before_bytes: int, free_bytes: int, passed_s: float, smooth_s: float) -> int:
    """Free memory to count on: a fall at once, a rise only as it lasts."""
    rise = free_bytes - before_bytes
    if rise <= MEANT_TO_MOVE * free_bytes:
        return free_bytes
    return before_bytes + int(rise * (1.0 - exp(-passed_s / smooth_s)))


def felt(
    trend: Trend,
    now: float,
    free_bytes: int,
    ours_bytes: int,
    unseen_bytes: int,
    unseen_sudden_bytes: int = 0,
) -> Trend:
    """The trend with a new reading; `unseen_bytes` are reserved for loads that nothing measures.

    A fall that no model of ours explains counts as such a load's, until that has all it needs.
    """
    passed_s = now - trend.at_s
    if passed_s < LEAST_GAP_S:
        return trend
    unexplained = trend.free_bytes - free_bytes - (ours_bytes - trend.ours_bytes)
    credit = min(unseen_bytes, max(0, trend.credit_bytes + unexplained))
    others = trend.free_bytes - free_bytes - max(0, ours_bytes - trend.ours_bytes)
    others -= max(0, credit - trend.credit_bytes)
    sudden = min(unseen_sudden_bytes, trend.sudden_bytes + max(0, others))
    others -= max(0, sudden - trend.sudden_bytes)
    return Trend(now, free_bytes, ours_bytes, max(0, others) / passed_s, credit, sudden)


def foreseen(free_bytes: int, trend: Trend, to_come_bytes: int, back_bytes: int, react_s: float) -> int:
    """Free memory once all loads are done, if others go on for as long as an unload takes. May be below 0.

    Loads count in full: their last part, the KV cache, comes faster than anything could be unloaded.
    """
    to_come = max(0, to_come_bytes - trend.credit_bytes)
    return free_bytes + back_bytes - to_come - int(trend.others_bytes_s * react_s)


def level(
    before: Level,
    free_bytes: int,
    believed_bytes: int,
    foreseen_bytes: int,
    total_bytes: int,
    limits: Limits,
) -> Level:
    """How tight memory is; what was entered is left only once there is some relief."""
    relief = limits.relief(total_bytes)
    if free_bytes < limits.critical_bytes or (before is Level.CRITICAL and free_bytes < limits.reserve_bytes):
        return Level.CRITICAL
    if foreseen_bytes < limits.reserve_bytes + (relief if before >= Level.HARD else 0):
        return Level.HARD
    if believed_bytes < limits.soft_line(total_bytes) + (relief if before >= Level.SOFT else 0):
        return Level.SOFT
    return Level.EASY


def poll_s(free_bytes: int, total_bytes: int, limits: Limits) -> float:
    """Seconds until the next look: by then others can have taken half of what is above the reserve."""
    base_s = limits.fast_poll_s if free_bytes < TIGHT_SHARE * total_bytes else limits.poll_s
    headroom_s = (free_bytes - limits.reserve_bytes) / limits.fill_bytes_s / 2
    return min(base_s, max(limits.least_poll_s, headroom_s))
