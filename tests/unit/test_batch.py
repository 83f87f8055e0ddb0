"""The states of a batch, its counts, and how long it will take."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models.batch import (
    MOVES,
    TERMINAL,
    Batch,
    BatchState,
    Counts,
    eta_s,
    may_move,
    new_id,
    task_id,
)
from gaelp_tasks.models.invocation import Tier

BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
small = st.integers(0, 10**7)


def batch(**more):
    known = {
        "id": new_id(),
        "tenant": "",
        "state": BatchState.IN_PROGRESS,
        "tier": Tier.BATCH,
        "name": "x.jsonl",
        "counts": Counts(total=100),
        "created_at": BEGIN,
        "started_at": BEGIN,
        "ended_at": None,
        "expires_at": None,
        "seen_at": BEGIN,
        "trouble": "",
    }
    return Batch(**known | more)


def test_the_states_are_openais_and_four_of_them_are_ends():
    assert {state.value for state in TERMINAL} == {"completed", "expired", "cancelled", "failed"}
    assert {state.value for state in BatchState} - TERMINAL == {
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    }


def test_every_state_can_be_reached_and_left():
    reached = {BatchState.VALIDATING}
    for _ in BatchState:
        reached |= {to for state in reached for to in MOVES[state]}
    assert reached == set(BatchState)
    assert not any(may_move(end, state) for end in TERMINAL for state in BatchState)
    assert not any(may_move(state, state) for state in BatchState)


@given(small, small, small, small, small, small)
def test_the_counts_add_up(open_ones, done, failed, invalid, expired, cancelled):
    ended = done + failed + invalid + expired + cancelled
    counts = Counts(open_ones + ended, done, failed, invalid, expired, cancelled)
    assert counts.open == open_ones
    assert counts.ended == counts.done + counts.errors == ended
    assert counts.to_run == counts.total - invalid


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 10**7))
def test_what_is_left_takes_as_long_for_each_as_the_others_took(ran, left, invalid, took_s):
    counts = Counts(total=ran + left + invalid, done=ran, invalid=invalid)
    now = BEGIN + timedelta(seconds=took_s)
    found = eta_s(batch(counts=counts), now)
    assert found == pytest.approx(left * took_s / ran, abs=1e-3, rel=1e-6)


def test_nothing_is_said_before_the_first_line_has_run():
    assert eta_s(batch(), BEGIN + timedelta(hours=1)) is None
    assert eta_s(batch(counts=Counts(total=9, invalid=3)), BEGIN) is None
    assert eta_s(batch(state=BatchState.VALIDATING), BEGIN) is None


def test_it_is_over_when_its_window_closes_and_when_it_is_over():
    counts, now = Counts(total=1000, done=1), BEGIN + timedelta(seconds=10)
    assert eta_s(batch(counts=counts, expires_at=now + timedelta(seconds=5)), now) == 5
    assert eta_s(batch(counts=counts, expires_at=BEGIN), now) == 0
    assert eta_s(batch(counts=counts, state=BatchState.CANCELLED), now) == 0


@given(
    st.text(min_size=1).filter(lambda text: text.isprintable()), st.text(min_size=1).filter(str.isprintable)
)
def test_a_line_has_the_same_id_each_time_and_another_line_another(one, other):
    first, second = new_id(), new_id()
    assert UUID(task_id(first, one)).version == 5
    assert task_id(first, one) == task_id(first, one)
    assert task_id(first, one) != task_id(second, one)
    assert (task_id(first, one) == task_id(first, other)) == (one == other)


def test_what_json_tells_is_complete():
    told = batch(counts=Counts(total=10, done=5)).facts(BEGIN + timedelta(seconds=5))
    assert (told["state"], told["eta_s"], told["counts"]["open"]) == ("in_progress", 5.0, 5)
    assert told["created_at"] == "2026-01-02T00:00:00+00:00"
    assert told["trouble"] is None
