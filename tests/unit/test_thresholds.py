"""How the memory controller weighs what it sees: what it believes, its levels, when it looks again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_workers import ledger, thresholds
from gaelp_workers.ledger import Footprint, Return
from gaelp_workers.thresholds import GIB, Level, Limits, Trend

LIMITS = Limits()
TOTAL = 32 * GIB


@given(st.integers(0, TOTAL), st.integers(0, TOTAL), st.floats(0, 100))
def test_a_fall_is_believed_at_once_and_a_rise_slowly(before, free, passed_s):
    believed = thresholds.believed(before, free, passed_s, LIMITS.smooth_s)
    assert min(before, free) <= believed <= free
    if free <= before:
        assert believed == free


def test_a_rise_that_lasts_is_believed_in_the_end():
    believed = 4 * GIB
    for _ in range(60):
        believed = thresholds.believed(believed, 20 * GIB, 1.0, LIMITS.smooth_s)
    assert believed == 20 * GIB


def test_each_threshold_is_left_later_than_it_is_entered():
    relief = LIMITS.relief(TOTAL)

    def level(before, free):
        return thresholds.level(before, free, free, free, TOTAL, LIMITS)

    soft, hard = LIMITS.soft_line(TOTAL), LIMITS.reserve_bytes
    lines = [(Level.SOFT, soft), (Level.HARD, hard)]
    for entered, line in lines:
        assert level(Level.EASY, line) < entered
        assert level(Level.EASY, line - 1) is entered
        assert level(entered, line + relief - 1) is entered
        assert level(entered, line + relief) < entered
    assert level(Level.HARD, LIMITS.critical_bytes - 1) is Level.CRITICAL
    assert level(Level.CRITICAL, hard - 1) is Level.CRITICAL
    assert level(Level.CRITICAL, hard) is Level.HARD


@pytest.mark.parametrize(
    ("free", "after_s"),
    [
        (TOTAL // 2, 1.0),
        (TOTAL // 5 - 1, 0.393),
        (3 * GIB, 0.089),
        (2 * GIB, 0.05),
        (0, 0.05),
    ],
)
def test_the_tighter_memory_is_the_sooner_it_looks_again(free, after_s):
    assert thresholds.poll_s(free, TOTAL, LIMITS) == pytest.approx(after_s, abs=0.001)


def test_a_tight_node_is_polled_twice_a_second_however_big_it_is():
    assert thresholds.poll_s(180 * GIB, 1000 * GIB, LIMITS) == LIMITS.fast_poll_s


def test_a_fall_that_our_own_load_explains_is_not_taken_for_somebody_elses():
    trend = Trend(0.0, 20 * GIB, 0)
    felt = thresholds.felt(trend, 1.0, 12 * GIB, ours_bytes=6 * GIB, unseen_bytes=0)
    assert felt.others_bytes_s == 2 * GIB
    hidden = thresholds.felt(trend, 1.0, 12 * GIB, ours_bytes=0, unseen_bytes=6 * GIB)
    assert (hidden.others_bytes_s, hidden.credit_bytes) == (2 * GIB, 6 * GIB)


def test_two_readings_close_together_tell_no_rate():
    trend = Trend(0.0, 20 * GIB, 0)
    assert thresholds.felt(trend, 0.001, 19 * GIB, 0, 0) == trend


@given(st.integers(0, TOTAL), st.integers(0, TOTAL), st.floats(0.0, 3.0))
def test_what_comes_back_is_never_counted_twice(total, risen, passed_s):
    back = Return(total, 4 * GIB, 4 * GIB, 0.0, LIMITS.verify_s)
    free = 4 * GIB + risen
    coming = ledger.coming_back(back, free, passed_s, LIMITS.react_s)
    assert coming >= 0
    assert coming + risen <= max(total, risen)


@given(st.integers(0, TOTAL), st.integers(0, GIB), st.integers(0, 8), st.integers(0, TOTAL))
def test_the_sudden_part_of_a_need_is_the_caches_part(shared, per_slot, slots, need):
    footprint = Footprint(shared, per_slot, slots)
    assert 0 <= footprint.sudden(need) <= need
    if slots * per_slot == 0 and shared:
        assert footprint.sudden(need) == 0
