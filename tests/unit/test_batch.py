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
    closed_until,
    eta_s,
    may_move,
    new_id,
    task_id,
)
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours

BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
TICKING = [BEGIN + timedelta(seconds=number) for number in range(6)]  # a line each second
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


@given(st.integers(1, 400), st.integers(0, 10**6), st.floats(0.01, 600 / 400), st.floats(0, 0.5))
def test_what_is_left_takes_as_long_for_each_as_the_last_ones_took(ran, left, each_s, since_s):
    ends = [BEGIN + timedelta(seconds=each_s * number) for number in range(ran + 1)]
    now = ends[-1] + timedelta(seconds=each_s * since_s)
    found = eta_s(batch(counts=Counts(total=ran + 1 + left, done=ran + 1)), now, ends[::-1])
    assert found == pytest.approx(left * each_s * (ran + since_s) / ran, abs=1e-3, rel=1e-3)


def test_a_night_without_workers_is_not_counted():
    morning = BEGIN + timedelta(hours=9)
    ends = [BEGIN + timedelta(seconds=number) for number in range(100)]
    counts = Counts(total=1100, done=100)
    assert eta_s(batch(counts=counts), morning, ends) is None, "nobody works on it"
    ends += [morning + timedelta(seconds=2 * number) for number in range(11)]
    assert eta_s(batch(counts=counts), morning + timedelta(seconds=20), ends) == 2000


def test_of_slow_lines_the_pace_is_that_of_the_hour():
    now = BEGIN + timedelta(hours=10)
    ends = [now - timedelta(minutes=minutes) for minutes in (700, 55, 35, 15, 5)]
    assert eta_s(batch(counts=Counts(total=8, done=5)), now, ends) == 55 * 60


def test_nothing_is_said_before_lines_have_run_for_a_while():
    assert eta_s(batch(), BEGIN + timedelta(hours=1), []) is None
    assert eta_s(batch(), BEGIN, [BEGIN]) is None
    assert eta_s(batch(), BEGIN + timedelta(seconds=1), [BEGIN, BEGIN]) is None, "one look told of both"
    assert eta_s(batch(state=BatchState.VALIDATING), TICKING[-1], TICKING) is None


def test_it_is_over_when_its_window_closes_and_when_it_is_over():
    counts, now = Counts(total=1000, done=1), TICKING[-1]
    assert eta_s(batch(counts=counts, expires_at=now + timedelta(seconds=5)), now, TICKING) == 5
    assert eta_s(batch(counts=counts, expires_at=BEGIN), now, TICKING) == 0
    assert eta_s(batch(counts=counts, state=BatchState.CANCELLED), now, TICKING) == 0


@given(st.integers(0, 7 * 24 * 60 - 1), st.integers(0, 3 * 24 * 60))
def test_a_batch_waits_outside_of_its_windows_until_one_opens_or_it_expires(at_min, left_min):
    hours = Hours.parse(["22:00-06:00", "sat 12:00-14:00"], "Europe/Berlin")
    now = BEGIN + timedelta(minutes=at_min)
    until = closed_until(batch(hours=hours), now)
    if until is None:
        assert hours.hold(now)
    else:
        steps = range(int((until - now).total_seconds() // 60) + 1)
        held = [hours.hold(now + timedelta(minutes=step)) for step in steps]
        assert held == [False] * (len(held) - 1) + [True]
    expires_at = now + timedelta(minutes=left_min)
    assert closed_until(batch(hours=hours, expires_at=expires_at), now) == (until and min(until, expires_at))
    assert closed_until(batch(hours=hours, state=BatchState.CANCELLING), now) is None
    assert closed_until(batch(), now) is None


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
    hours = Hours.parse(["22:00-06:00"], "Europe/Berlin")
    told = batch(counts=Counts(total=10, done=5), hours=hours).facts(TICKING[-1], TICKING)
    assert (told["state"], told["eta_s"], told["counts"]["open"]) == ("in_progress", 5.0, 5)
    assert (told["windows"], told["zone"], told["waits_until"]) == (["22:00-06:00"], "Europe/Berlin", None)
    noon = BEGIN + timedelta(hours=12)
    assert batch(hours=hours).facts(noon)["waits_until"] == "2026-01-02T21:00:00+00:00"
    assert told["created_at"] == "2026-01-02T00:00:00+00:00"
    assert told["trouble"] is None
