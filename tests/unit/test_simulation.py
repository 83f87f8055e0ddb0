"""Our scripts and decisions over seeded faults; `python -m simulation` is the long form."""

from collections import Counter

import pytest

from gaelp_tasks.lifecycle import Invariant
from simulation.plants import PLANTS
from simulation.shrink import named, numbers, shrink
from simulation.world import KINDS, WORKERS, plan, simulate

SEEDS = 30  #: within which a planted bug is caught


@pytest.fixture(scope="module")
def verdicts():
    return [simulate(seed, 200) for seed in range(5)]


def test_nothing_breaks_whatever_fails(verdicts):
    assert [str(verdict.broken) for verdict in verdicts if verdict.broken] == []


def test_the_simulations_are_no_idle_ones(verdicts):
    counts = sum((verdict.counts for verdict in verdicts), Counter())
    faults = {"DROPPED", "UNANSWERED", "DIES_BEFORE", "DIES_AFTER", "interleaved", "gone"}
    assert all(counts[what] > 0 for what in KINDS.keys() | faults), counts
    assert counts["answers"] > WORKERS * len(verdicts)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_caught(name):
    with PLANTS[name].bug():
        caught = (simulate(seed, PLANTS[name].steps).broken for seed in range(SEEDS))
        broken = next((found for found in caught if found is not None), None)
    assert broken is not None
    assert broken.invariant in PLANTS[name].caught_by, broken


def test_a_seed_is_one_history():
    again = [simulate(3, 60) for _ in range(2)]
    assert again[0].history == again[1].history
    assert len(again[0].history) > 60
    assert simulate(4, 60).history != again[0].history


def test_a_step_means_the_same_without_those_before_it():
    assert plan(5, 100)[:40] == plan(5, 40)


def test_a_failing_history_is_shortened_and_still_fails():
    with PLANTS["a sweep takes leases that go on"].bug():
        found = simulate(0, 40)
        kept, shortest = shrink(0, 40, found, most=15)
        again = simulate(0, 40, keep=numbers(named(kept)))
    assert len(kept) < found.steps / 2
    assert shortest.broken.invariant is again.broken.invariant is Invariant.LIVE_LEASE


@pytest.mark.parametrize(("text", "steps"), [("1,4-6", {1, 4, 5, 6}), ("0-2", {0, 1, 2}), ("7", {7})])
def test_kept_steps_are_written_as_ranges(text, steps):
    assert numbers(text) == steps
    assert named(steps) == text
