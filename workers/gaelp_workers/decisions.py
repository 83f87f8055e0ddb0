"""What the memory controller sees, remembers and decides, as data. Pure."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from gaelp_workers.eviction import Run
from gaelp_workers.ledger import Footprint, Held, Return
from gaelp_workers.thresholds import Level, Trend

__all__ = [
    "Admit",
    "Alert",
    "Decision",
    "Hold",
    "HoldReason",
    "Load",
    "NextPoll",
    "Snapshot",
    "State",
    "Unload",
    "UnloadReason",
]


class Snapshot(NamedTuple):
    """What the node shows at one moment."""

    total_bytes: int
    free_bytes: int
    #: what each model on the server holds; one that still loads is in it where a probe can see it
    resident: Mapping[str, int]
    loaded: frozenset[str]  #: models that may be called, also those that others have loaded
    failed: frozenset[str]  #: loads of ours that ended without a model
    running: Mapping[str, Sequence[Run]]  #: of ours, by model; all that were admitted and have not ended
    waiting: Mapping[str, Sequence[Run]]  #: by model, in the order in which they are to run
    footprints: Mapping[str, Footprint]  #: of every model that this node has


class State(NamedTuple):
    """What the controller remembers; a new one for every step."""

    models: Mapping[str, Held]  #: ours
    measured: Mapping[
        str, int
    ]  #: bytes by model, of loads that were seen; kept by the caller across restarts
    rests: Mapping[str, float]  #: until when a model is not loaded again, after a load that failed
    level: Level
    believed_bytes: int  #: free memory to count on
    trend: Trend
    back: Return | None  #: None unless unloaded memory is still waited for
    at_s: float
    served: Mapping[str, float] = MappingProxyType({})  #: by model, when a run of it was last let in


class UnloadReason(StrEnum):
    """Why a model goes."""

    ROOM = "room"  #: nothing runs on it, and another one needs its room
    EVICTION = "eviction"  #: memory is short: hard threshold
    CRITICAL = "critical"  #: memory is all but gone
    LATE = "late"  #: its load, or its unload, does not end


class HoldReason(StrEnum):
    """Why runs of a model wait."""

    UNKNOWN = "unknown"  #: the node does not have the model, or nothing is known of its size
    TOO_BIG = "too big"  #: it would not fit if nothing else were loaded
    BUSY = "busy"  #: every slot of the model is taken
    LOADING = "loading"
    FAILED = "failed"  #: the last load did; it is tried again then
    UNLOADING = "unloading"
    DRAINING = "draining"  #: of this model; another one gets its room
    MAKING_ROOM = "making room"  #: others are drained for it
    PUT_OFF = "put off"  #: loaded models go first, until then; None: until they were loaded for a while
    TIERS = "tiers"  #: what could make room is kept by higher tiers, until then
    TURN = "turn"  #: an older one gets the room first
    ROOM = "room"  #: all that could be unloaded is not enough
    SOFT = "soft"
    HARD = "hard"
    CRITICAL = "critical"
    VERIFYING = "verifying"  #: unloaded memory has not been seen to come back


class Load(NamedTuple):
    """Load this model, with one loader that all who wait for it share."""

    model: str
    need_bytes: int  #: reserved for it


class Unload(NamedTuple):
    """Stop the runs of this model and unload it."""

    model: str
    reason: UnloadReason
    cut: tuple[str, ...]  #: ids of runs to give back; no attempt of theirs is spent


class Admit(NamedTuple):
    """Let this run start."""

    run: str
    model: str


class Hold(NamedTuple):
    """The runs of this model that wait go on waiting."""

    model: str
    reason: HoldReason
    until_s: float | None  #: when that may change by itself; None: when something else happens


class Alert(NamedTuple):
    """People should know."""

    text: str


class NextPoll(NamedTuple):
    """Look again after so many seconds at the latest."""

    after_s: float


Decision = Load | Unload | Admit | Hold | Alert | NextPoll
