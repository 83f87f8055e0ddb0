"""What models take, what is still to come of it, what is coming back, and what is left. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

__all__ = [
    "Footprint",
    "Held",
    "Phase",
    "Return",
    "coming_back",
    "holds",
    "need_bytes",
    "still_to_come",
    "was_seen",
]

MEASURED_FACTOR = 1.05  #: on what was measured: the same load differs a little from time to time
SEEN_SHARE = 0.8  #: of what was unloaded; others may take the rest while it comes back


class Footprint(NamedTuple):
    """What a model is estimated to need; all of it is taken at load."""

    shared_bytes: int  #: weights and compute buffers, once
    per_slot_bytes: int  #: the KV cache of one slot
    num_parallel: int  #: slots of the model once it is loaded

    @property
    def total_bytes(self) -> int:
        """Of the loaded model."""
        return self.shared_bytes + self.num_parallel * self.per_slot_bytes

    def sudden(self, need_bytes: int) -> int:
        """The KV cache's part of this need."""
        return need_bytes - need_bytes * self.shared_bytes // max(1, self.total_bytes)


class Phase(StrEnum):
    """Where a model of ours is between its load and its unload."""

    LOADING = "loading"
    LOADED = "loaded"
    DRAINING = "draining"  #: loaded, but nothing new runs on it: it makes room for another
    UNLOADING = "unloading"


class Held(NamedTuple):
    """One model that this worker has loaded; those of others are never in the ledger."""

    phase: Phase
    need_bytes: int  #: reserved for the load; for an unload: what it held
    sudden_bytes: int  #: of these: the KV cache, which a load takes at once, at its end
    since_s: float  #: of the phase; DRAINING: of LOADED
    until_s: float  #: LOADING and UNLOADING: when to give up waiting
    room_for: str = ""  #: DRAINING: the model that waits for the room


class Return(NamedTuple):
    """What was unloaded and not yet seen to come back."""

    total_bytes: int
    low_bytes: int  #: the least that was free since
    high_bytes: int  #: the most that was free since
    moved_s: float  #: when it began, or more became free
    until_s: float  #: when to go on without having seen it


def need_bytes(footprint: Footprint, measured_bytes: int | None, safety_factor: float) -> int:
    """What to reserve for a load; None was never measured."""
    if measured_bytes is not None:
        return int(measured_bytes * MEASURED_FACTOR)
    return int(footprint.total_bytes * safety_factor)


def still_to_come(models: Mapping[str, Held], resident: Mapping[str, int]) -> int:
    """Bytes that loads under way will take beyond what `resident` says they hold."""
    return sum(
        max(0, held.need_bytes - resident.get(model, 0))
        for model, held in models.items()
        if held.phase is Phase.LOADING
    )


def coming_back(back: Return | None, free_bytes: int, now: float, react_s: float) -> int:
    """Bytes of unloads under way that do not show in `free_bytes` yet.

    0 once nothing has come back for `react_s`: others are as fast as the unload.
    """
    if back is None or now - back.moved_s > react_s:
        return 0
    return max(0, back.total_bytes - max(0, free_bytes - back.low_bytes))


def watched(back: Return, free_bytes: int, now: float) -> Return:
    """The same after a new reading."""
    low = min(back.low_bytes, free_bytes)
    if free_bytes <= back.high_bytes:
        return back._replace(low_bytes=low)
    return back._replace(low_bytes=low, high_bytes=free_bytes, moved_s=now)


def was_seen(back: Return, free_bytes: int) -> bool:
    """Whether the memory of all unloads has come back."""
    return free_bytes - back.low_bytes >= SEEN_SHARE * back.total_bytes


def holds(held: Held, model: str, resident: Mapping[str, int]) -> int:
    """Bytes that come back when this model of ours is unloaded."""
    return resident.get(model, 0 if held.phase is Phase.LOADING else held.need_bytes)
