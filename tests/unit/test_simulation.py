"""Our scripts and decisions over seeded faults; `python -m simulation` is the long form."""

from collections import Counter

import pytest

from gaelp_tasks.lifecycle import Invariant
from simulation.plants import PLANTS
from simulation.shrink import named, numbers, shrink
from simulation.world import KINDS, WORKERS, plan, simulate

STEPS = 150
SEEDS = 20  #: within which a planted bug is caught
#: where the search begins, to save time: what catches it today
FIRST = {
    "a refused write counts as written": 86,
    "streams do not know the claim": 1,
    "the caller's clock in the scripts": 1,
    "a sweep drops what is due": 1,
    "a claim does not look at the eta": 1,
    "giving back loses the message": 1,
    "an answer that was told is made again": 4,
    "only the newest entry tells what was told": 5,
    "a cancel is not looked at before the start": 1,
    "having no room spends an attempt": 27,
}
LONG = {"only the newest entry tells what was told": 250}  #: steps


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
    first, steps = FIRST.get(name, 0), LONG.get(name, STEPS)
    with PLANTS[name].bug():
        caught = (simulate(seed, steps).broken for seed in range(first, first + SEEDS))
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
