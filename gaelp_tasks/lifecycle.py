"""The states of an invocation and its legal moves, as data. Pure.

queued ──> running ──> done
  ^  │        │ ├────> cut
  │  │        │ └────> failed
  │  └─> cut  v
  └──────  waiting     (a retry or a snooze, until it is due)
"""

from enum import StrEnum

__all__ = ["MOVES", "TERMINAL", "State", "state_of"]


class State(StrEnum):
    """Where an invocation is."""

    UNKNOWN = "unknown"  #: never accepted here, or forgotten after its time to live
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  #: will be queued again when it is due
    DONE = "done"
    CUT = "cut"  #: ended from outside, partial text kept
    FAILED = "failed"


MOVES: dict[State, frozenset[State]] = {
    State.UNKNOWN: frozenset({State.QUEUED}),
    State.QUEUED: frozenset({State.RUNNING, State.CUT, State.FAILED}),
    State.RUNNING: frozenset({State.DONE, State.CUT, State.FAILED, State.WAITING, State.QUEUED}),
    State.WAITING: frozenset({State.QUEUED, State.CUT}),
    State.DONE: frozenset(),
    State.CUT: frozenset(),
    State.FAILED: frozenset(),
}

TERMINAL = frozenset(state for state, moves in MOVES.items() if not moves)


def state_of(celery_state: str, *, stop_reason: str | None, in_queue: bool) -> State:
    """Our state for what Celery's result record, the result's stop_reason and the queues say.

    Celery's PENDING means "no record": such an id is queued if a queue holds it, else unknown.
    """
    if celery_state == "SUCCESS":
        return State.DONE if stop_reason in {None, "stop", "length"} else State.CUT
    if celery_state in _ENDED:
        return _ENDED[celery_state]
    if in_queue:
        return State.QUEUED
    return _UNDER_WAY.get(celery_state, State.UNKNOWN)


_ENDED = {"FAILURE": State.FAILED, "REVOKED": State.CUT}
_UNDER_WAY = {"STARTED": State.RUNNING, "RETRY": State.WAITING}
