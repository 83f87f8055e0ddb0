"""A batch: many requests from one file, its states and their legal moves as data, its counts. Pure.

validating ──> in_progress ──> finalizing ──> completed
  │    │          │  │  └────────────────────> expired
  │    │          │  └───────────────────────> failed     (whoever works on it keeps dying)
  │    └──────────┴──> cancelling ──> cancelled
  └──> failed                                             (no line could be read)
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours

__all__ = [
    "ID_PREFIX",
    "LONGEST_TENANT",
    "MOVES",
    "TERMINAL",
    "Batch",
    "BatchState",
    "Counts",
    "LineOutcome",
    "closed_until",
    "eta_s",
    "id_under",
    "may_move",
    "new_id",
    "task_id",
]

LONGEST_TENANT = 200  #: characters, as in an invocation

ID_PREFIX = "batch_"
SPACE = UUID("b1c7a4de-3f52-5a0b-9c4e-6d8f20a1e735")  #: of keys; another one would make other ids

PACE_S = (600.0, 3600.0)  #: the pace is that of the last minutes; where too few lines ended then, of the hour


class BatchState(StrEnum):
    """Where a batch is; OpenAI's words."""

    VALIDATING = "validating"  #: its file is being read
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"  #: every line has its outcome; what Redis still holds of them is cleared away
    COMPLETED = "completed"
    EXPIRED = "expired"  #: its window closed: what had finished is kept, the rest are error lines
    CANCELLING = "cancelling"  #: what runs is being stopped
    CANCELLED = "cancelled"  #: what had finished is kept, the rest are error lines
    FAILED = "failed"  #: nothing could be run; it says why


MOVES: dict[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset({BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.FAILED}),
    BatchState.IN_PROGRESS: frozenset(
        {BatchState.FINALIZING, BatchState.CANCELLING, BatchState.EXPIRED, BatchState.FAILED}
    ),
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED}),
    BatchState.COMPLETED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
    BatchState.FAILED: frozenset(),
}

TERMINAL = frozenset(state for state, moves in MOVES.items() if not moves)


def may_move(before: BatchState, after: BatchState) -> bool:
    """Whether the table has this move."""
    return after in MOVES[before]


class LineOutcome(StrEnum):
    """What became of a line; one without an outcome is still to be run, or runs."""

    DONE = "done"  #: its result is kept
    FAILED = "failed"  #: it ran, and was refused, gave up its retries or was cut
    INVALID = "invalid"  #: it could not be read, and was never published
    EXPIRED = "expired"  #: the batch's window closed before it had finished
    CANCELLED = "cancelled"  #: the batch, or the line's own invocation, was cancelled


class Counts(NamedTuple):
    """The lines of a batch by outcome; blank ones are not counted."""

    total: int = 0
    done: int = 0
    failed: int = 0
    invalid: int = 0
    expired: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        """Those that have an outcome."""
        return self.done + self.errors

    @property
    def errors(self) -> int:
        """Those with an outcome and no result."""
        return self.failed + self.invalid + self.expired + self.cancelled

    @property
    def open(self) -> int:
        """Those still to be run, or running."""
        return self.total - self.ended

    @property
    def to_run(self) -> int:
        """Those that could be read."""
        return self.total - self.invalid


class Batch(NamedTuple):
    """A batch as it is known now; times are aware."""

    id: str
    tenant: str  #: '' for none
    state: BatchState
    tier: Tier
    name: str  #: of its file, '' where it has none
    counts: Counts
    created_at: datetime
    started_at: datetime | None  #: when the last line was read, and the first could run
    ended_at: datetime | None
    expires_at: datetime | None  #: None: it may take as long as it takes
    seen_at: datetime | None  #: when somebody last worked on it
    trouble: str  #: why it failed, in one sentence; '' otherwise
    hours: Hours | None = None  #: its lines are published inside these windows only; None: at any time
    waits_until: datetime | None = None  #: nobody works on it before; None: somebody does, or should
    owner: str = ""  #: who has submitted it over HTTP; '' where nobody is known

    @property
    def is_over(self) -> bool:
        """Nothing will change any more."""
        return self.state in TERMINAL

    def facts(self, now: datetime, lately: Sequence[datetime] = ()) -> dict[str, Any]:
        """What `--json` tells; `lately` as in eta_s."""
        left_s = eta_s(self, now, lately)
        return {
            "id": self.id,
            "state": self.state.value,
            "owner": self.owner or None,
            "tier": self.tier.value,
            "file": self.name,
            "counts": {**self.counts._asdict(), "open": self.counts.open},
            "created_at": _iso(self.created_at),
            "started_at": _iso(self.started_at),
            "ended_at": _iso(self.ended_at),
            "expires_at": _iso(self.expires_at),
            "windows": [] if self.hours is None else [str(window) for window in self.hours.windows],
            "zone": None if self.hours is None else self.hours.zone,
            "waits_until": _iso(closed_until(self, now)),
            "eta_s": None if left_s is None else round(left_s, 1),
            "trouble": self.trouble or None,
        }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


def closed_until(batch: Batch, now: datetime) -> datetime | None:
    """When a batch outside its windows is to be looked at again: the next one opens, or it expires.

    None inside them, where it has none, and where there is nothing to wait for.
    """
    if batch.state is not BatchState.IN_PROGRESS or batch.hours is None or batch.hours.hold(now):
        return None
    opens = batch.hours.opens(now)
    return opens if batch.expires_at is None else min(opens, batch.expires_at)


def eta_s(batch: Batch, now: datetime, lately: Sequence[datetime] = ()) -> float | None:
    """Seconds until it is over at the pace of late; None where that cannot be told, 0 where it is over.

    `lately`: when the last of its lines ended, in any order. Time outside of its windows is not counted.
    """
    if batch.is_over:
        return 0.0
    per_s = _pace(now, lately)
    if batch.state is not BatchState.IN_PROGRESS or not per_s:
        return None
    left_s = batch.counts.open / per_s
    if batch.expires_at is not None:
        left_s = min(left_s, max(0.0, (batch.expires_at - now).total_seconds()))
    return left_s


def _pace(now: datetime, lately: Sequence[datetime]) -> float:
    """Lines in a second, counted from an end of one to now; 0 where too few have ended to tell."""
    for within_s in PACE_S:
        fresh = [at for at in lately if at >= now - timedelta(seconds=within_s)]
        first = min(fresh, default=now)
        behind = sum(at > first for at in fresh)
        if behind and first < now:
            return behind / (now - first).total_seconds()
    return 0.0


def new_id() -> str:
    """An id that no other batch has."""
    return ID_PREFIX + uuid4().hex


def id_under(key: str, tenant: str) -> str:
    """The id of a batch that is submitted under an idempotency key: always the same."""
    return ID_PREFIX + uuid5(SPACE, json.dumps([tenant, key])).hex


def task_id(batch_id: str, custom_id: str) -> str:
    """The id of a line's invocation: always the same, so that to publish it twice is harmless."""
    return str(uuid5(UUID(batch_id.removeprefix(ID_PREFIX)), custom_id))
