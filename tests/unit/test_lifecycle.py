"""States of an invocation as data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.lifecycle import (
    CAUSES,
    MESSAGE_CAUSES,
    MOVES,
    TERMINAL,
    Cause,
    Invariant,
    MessageState,
    State,
    state_from,
    state_of,
)

CELERY = ["PENDING", "RECEIVED", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"]
STOPS = [None, "stop", "length", "cancelled", "deadline", "stall", "budget", "expired"]


def reachable_from(state):
    seen, look_at = set(), [state]
    while look_at:
        for following in MOVES[look_at.pop()] - seen:
            seen.add(following)
            look_at.append(following)
    return seen


def test_moves_are_closed_over_all_states():
    assert MOVES.keys() == set(State)
    assert all(following in MOVES for moves in MOVES.values() for following in moves)


def test_terminal_states_are_the_three_ends_and_lead_nowhere():
    assert {State.DONE, State.CUT, State.FAILED} == TERMINAL
    assert all(not MOVES[state] for state in TERMINAL)


def test_nothing_stays_in_a_state_and_nothing_becomes_unknown():
    assert all(state not in moves for state, moves in MOVES.items())
    assert all(State.UNKNOWN not in moves for moves in MOVES.values())


@pytest.mark.parametrize("state", sorted(set(State) - TERMINAL))
def test_every_open_state_can_reach_every_end(state):
    assert reachable_from(state) >= TERMINAL


def test_what_waits_is_queued_again_before_it_runs():
    assert State.RUNNING not in MOVES[State.WAITING]
    assert State.QUEUED in MOVES[State.WAITING]


def test_only_a_settlement_ends_what_is_queued_or_running_with_an_answer():
    causes = {
        cause for cause, moves in CAUSES.items() for _, after in moves if after in {State.DONE, State.CUT}
    }
    assert causes == {Cause.SETTLE}


def test_every_cause_has_its_moves_of_messages_and_of_invocations():
    assert CAUSES.keys() == MESSAGE_CAUSES.keys() == set(Cause)
    assert all(before is not after for moves in MESSAGE_CAUSES.values() for before, after in moves)


def test_a_message_is_gone_only_by_an_acknowledgement_a_purge_or_a_claim_of_what_was_told():
    causes = {
        cause for cause, moves in MESSAGE_CAUSES.items() for _, after in moves if after is MessageState.GONE
    }
    assert causes == {Cause.ACKNOWLEDGE, Cause.PURGE, Cause.CLAIM}


def test_only_a_claim_makes_a_message_held_and_every_message_can_come_there():
    causes = {
        cause for cause, moves in MESSAGE_CAUSES.items() for _, after in moves if after is MessageState.HELD
    }
    assert causes == {Cause.CLAIM}
    moves = {move for each in MESSAGE_CAUSES.values() for move in each}
    for place in set(MessageState) - {MessageState.HELD}:
        reached = {place}
        for _ in MessageState:
            reached |= {after for before, after in moves if before in reached}
        assert MessageState.HELD in reached


@pytest.mark.parametrize(
    ("messages", "state"),
    [
        ([], State.UNKNOWN),
        ([MessageState.QUEUED], State.QUEUED),
        ([MessageState.HELD], State.RUNNING),
        ([MessageState.PARKED], State.WAITING),
        ([MessageState.SUSPECT], State.QUEUED),
        ([MessageState.DEAD], State.FAILED),
        ([MessageState.PARKED, MessageState.HELD], State.RUNNING),  # a retry is published, its run not over
        ([MessageState.PARKED, MessageState.QUEUED], State.QUEUED),
        ([MessageState.GONE], State.UNKNOWN),
    ],
)
def test_the_state_follows_from_where_the_messages_are(messages, state):
    assert state_from(messages) is state


def test_every_invariant_is_a_sentence_of_its_own():
    assert all(text.endswith(".") and text[0].isupper() for text in Invariant)
    assert len({*Invariant}) == len(Invariant.__members__)


@given(st.sampled_from(CELERY) | st.text(), st.sampled_from(STOPS) | st.text(), st.booleans())
def test_every_record_has_a_state(celery_state, stop_reason, in_queue):
    assert state_of(celery_state, stop_reason=stop_reason, in_queue=in_queue) in State


@pytest.mark.parametrize(
    ("celery_state", "stop_reason", "in_queue", "state"),
    [
        ("PENDING", None, False, State.UNKNOWN),
        ("PENDING", None, True, State.QUEUED),
        ("STARTED", None, False, State.RUNNING),
        ("STARTED", None, True, State.QUEUED),  # given back by a worker that stopped
        ("RETRY", None, False, State.WAITING),
        ("RETRY", None, True, State.QUEUED),
        ("FAILURE", None, False, State.FAILED),
        ("FAILURE", None, True, State.FAILED),
        ("REVOKED", None, False, State.CUT),
        ("SUCCESS", "stop", True, State.DONE),
        ("SUCCESS", "length", False, State.DONE),
        ("SUCCESS", None, False, State.DONE),
        *(("SUCCESS", stop, False, State.CUT) for stop in STOPS[3:]),
    ],
)
def test_the_state_follows_the_record_the_stop_reason_and_the_queues(
    celery_state, stop_reason, in_queue, state
):
    assert state_of(celery_state, stop_reason=stop_reason, in_queue=in_queue) is state
