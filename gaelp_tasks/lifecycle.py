"""The states of an invocation and of its messages, what may move them, and what always holds: as data. Pure.

An invocation is the id that a sender knows; its state is what `gaelp show` says.

    queued ──> running ──> done
      ^  │        │ ├────> cut
      │  │        │ └────> failed
      │  └──────> v
      └──────  waiting     (sent for later, a retry or a snooze, until it is due)

A message is one publication of that id; a retry is a new message. It is in exactly one place.

    (not there) ──> queued ──> held ──> gone
                    ^ ^  │ │   │ │ └──> dead ──> queued, gone
                    │ │  v └───┼─┼────> dead
                    │ parked <─┘ └────> suspect ──> held, dead, gone
                    └─ held, parked

tests/simulation holds the scripts and the worker's code against these tables.
"""

from collections.abc import Collection
from enum import StrEnum

__all__ = [
    "CAUSES",
    "MESSAGE_CAUSES",
    "MOVES",
    "TERMINAL",
    "Cause",
    "Invariant",
    "MessageState",
    "State",
    "state_from",
    "state_of",
]


class State(StrEnum):
    """Where an invocation is."""

    UNKNOWN = "unknown"  #: never accepted here, or forgotten after its time to live
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  #: will be queued again when it is due
    DONE = "done"
    CUT = "cut"  #: ended from outside, partial text kept
    FAILED = "failed"


class MessageState(StrEnum):
    """Where a message is."""

    QUEUED = "queued"  #: in a list that workers take from
    HELD = "held"  #: claimed by a worker, under a lease
    PARKED = "parked"  #: until it is due
    SUSPECT = "suspect"  #: its workers died; it waits to run alone
    DEAD = "dead"  #: a dead letter: it runs only if somebody replays it
    GONE = "gone"  #: settled and acknowledged, or not published yet


class Cause(StrEnum):
    """What moves them; each but the settlement is one atomic step in Redis."""

    PUBLISH = "publish"
    CLAIM = "claim"
    SETTLE = "settle"  #: the end of the stream, or the result where a run has none
    ACKNOWLEDGE = "acknowledge"
    GIVE_BACK = "give back"  #: by the worker that holds it
    SWEEP = "sweep"  #: by anybody: the lease has ended, or the time has come
    BURY = "bury"
    REPLAY = "replay"
    PURGE = "purge"


_Q, _H, _P = MessageState.QUEUED, MessageState.HELD, MessageState.PARKED
_S, _D, _G = MessageState.SUSPECT, MessageState.DEAD, MessageState.GONE

#: A claim takes what is due and no fault, refuses junk, parks what must wait (for its time, or for the end of
#: another message of the same id), sets aside what killed its workers, and drops what was told before.
MESSAGE_CAUSES: dict[Cause, frozenset[tuple[MessageState, MessageState]]] = {
    Cause.PUBLISH: frozenset({(_G, _Q)}),
    Cause.CLAIM: frozenset(
        {(_Q, _H), (_Q, _P), (_Q, _S), (_Q, _D), (_Q, _G)} | {(_S, _H), (_S, _D), (_S, _G)}
    ),
    Cause.SETTLE: frozenset(),
    Cause.ACKNOWLEDGE: frozenset({(_H, _G)}),
    Cause.GIVE_BACK: frozenset({(_H, _Q)}),
    Cause.SWEEP: frozenset({(_H, _Q), (_H, _D), (_P, _Q)}),
    Cause.BURY: frozenset({(_H, _D)}),
    Cause.REPLAY: frozenset({(_D, _Q)}),
    Cause.PURGE: frozenset({(_D, _G)}),
}

_ENDS = (State.DONE, State.CUT, State.FAILED)

#: An acknowledgement moves an invocation where its retry was published before: to wait, or to the queue. So
#: does what makes a dead letter of one message while another of its id is parked. A settlement may come late,
#: when the message was given back already and nobody has claimed it yet.
CAUSES: dict[Cause, frozenset[tuple[State, State]]] = {
    Cause.PUBLISH: frozenset({(State.UNKNOWN, State.QUEUED), (State.WAITING, State.QUEUED)}),
    Cause.CLAIM: frozenset({(State.QUEUED, State.RUNNING), (State.QUEUED, State.WAITING)}),
    Cause.SETTLE: frozenset((before, end) for before in (State.RUNNING, State.QUEUED) for end in _ENDS),
    Cause.ACKNOWLEDGE: frozenset({(State.RUNNING, State.WAITING), (State.RUNNING, State.QUEUED)}),
    Cause.GIVE_BACK: frozenset({(State.RUNNING, State.QUEUED)}),
    Cause.SWEEP: frozenset(
        {(State.RUNNING, after) for after in (State.QUEUED, State.WAITING, State.FAILED)}
        | {(State.WAITING, State.QUEUED)}
    ),
    Cause.BURY: frozenset({(State.RUNNING, after) for after in (State.QUEUED, State.WAITING, State.FAILED)}),
    Cause.REPLAY: frozenset({(State.UNKNOWN, State.QUEUED)}),  # a dead letter begins anew
    Cause.PURGE: frozenset(),
}

MOVES: dict[State, frozenset[State]] = {
    state: frozenset(after for moves in CAUSES.values() for before, after in moves if before is state)
    for state in State
}

TERMINAL = frozenset(state for state, moves in MOVES.items() if not moves)


class Invariant(StrEnum):
    """What holds at every moment, whatever fails; each is one sentence."""

    KEPT = "What a sender was told is accepted is settled, or one of its messages is somewhere."
    ONE_PLACE = "A message is in at most one place."
    LEGAL_MOVE = "A message and an invocation move only as the tables say, by the causes they name."
    ONE_HOLDER = "At most one live lease exists for an invocation."
    NUMBERS_GROW = "Each claim of an invocation has a higher number than every claim before it."
    ONE_ANSWER = "An invocation never has two different answers."
    FENCED = "Nothing of an earlier claim comes into a stream behind what a later one wrote."
    NOT_AGAIN = "A model is not called again for an invocation whose answer was told before the claim."
    CANCELLED = "What was cancelled before it was claimed never starts."
    NOT_EARLY = "What is sent for later is not taken before it is due, unless it is cancelled."
    NOT_LATE = "What is due, and what nobody holds any more, is back in a queue after the next sweep."
    LIVE_LEASE = "A living holder that renews in time never loses what it holds."
    NOT_REVIVED = "A lease that was swept is not renewed."
    ATTEMPTS = "Only a retry spends an attempt."
    SETTLES = "When nothing fails any more, everything accepted settles soon."


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


def state_from(messages: Collection[MessageState]) -> State:
    """The state of an invocation that has no result, by where its messages are.

    A retry is published before its run's message is acknowledged: what comes first here counts.
    """
    return next((state for place, state in _OPEN.items() if place in messages), State.UNKNOWN)


_OPEN = {
    MessageState.HELD: State.RUNNING,
    MessageState.QUEUED: State.QUEUED,
    MessageState.SUSPECT: State.QUEUED,
    MessageState.PARKED: State.WAITING,
    MessageState.DEAD: State.FAILED,
}
