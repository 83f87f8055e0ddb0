"""When a lower tier has its turn before the higher ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import SEPARATOR
from gaelp_workers.dispatch import INVOKES, Held, Kind
from gaelp_workers.turns import EACH, Turns, Waiting

MODELS = {"m": "m", "any": "m", "n": "n"}
HIGH, MIDDLE, LOW = Tier
NOW = 10_000.0


def since(published_at: float = NOW, queue: str = "", count: int = 1) -> Waiting:
    return Waiting(count, published_at, NOW, f"{queue}{SEPARATOR}3")


def all_waiting(published_at: float = NOW, model: str = "m") -> dict[str, Waiting]:
    return {f"{tier}.{model}": since(published_at, f"{tier}.{model}") for tier in Tier}


def run(tier: Tier, model: str = "m", **more) -> Held:
    return Held("id", task=INVOKES, tier=tier, model=model, **more)


def due(turns, waiting, slots=2, held=()):
    return turns.due(waiting, MODELS, {"m": slots, "n": slots}, held, NOW)


def served(turns, waiting, count, slots=2, held=()):
    """Which tiers start, where each claim takes one; a turn goes first, else the highest tier that waits."""
    found = []
    for _ in range(count):
        first = due(turns, waiting, slots, held)
        tiers = sorted(Tier(name.partition(".")[0]) for name in waiting)
        top = min(tiers, key=lambda tier: tier.rank)
        tier = Tier(first[0].partition(".")[0]) if first else top
        turns.took(run(tier, turn=bool(first)), MODELS)
        found.append(tier)
    return found


def test_of_two_slots_each_lower_tier_gets_one_start_in_eight_and_the_lowest_first():
    started = served(Turns(0), all_waiting(), 10 * EACH + 1)
    assert started.count(MIDDLE) == started.count(LOW) == 10
    assert started[: EACH + 1] == [HIGH] * (EACH - 1) + [LOW, MIDDLE]


def test_a_single_slot_is_the_higher_tiers_until_something_has_waited_its_maximum():
    assert {*served(Turns(600), all_waiting(), 50, slots=1)} == {HIGH}
    assert {*served(Turns(0), all_waiting(NOW - 10_000), 50, slots=1)} == {HIGH}, "there is no maximum"


def test_what_has_waited_its_maximum_goes_first_at_once_and_the_next_after_as_many_others():
    waiting = {"interactive.m": since(), "background.m": since(NOW - 600, "background.m")}
    turns = Turns(600)
    assert due(turns, waiting, slots=1) == [f"background.m{SEPARATOR}3"], "the very list where it waits"
    started = served(turns, waiting, 4 * EACH, slots=1)
    assert started == ([LOW] + [HIGH] * (EACH - 1)) * 4
    waiting["background.m"] = since(NOW - 599.9)
    assert due(Turns(600), waiting, slots=1) == []


def test_of_a_tier_what_waits_longest_has_the_turn():
    waiting = {"background.m": since(NOW - 700, "new"), "background.any": since(NOW - 800, "old")}
    assert due(Turns(600), waiting) == [f"old{SEPARATOR}3"]


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 1), (EACH, 1), (2 * EACH, 2)])
def test_runs_of_the_trickle_have_their_share_of_the_slots_and_no_more(slots, most):
    held = [run(LOW, turn=True)] * (most - 1) + [run(LOW)] * 3 + [run(LOW, model="n", turn=True)]
    waiting = all_waiting(NOW - 700)
    assert due(Turns(600), waiting, slots, held)
    assert due(Turns(600), waiting, slots, [*held, run(MIDDLE, model="any", turn=True)]) == []


def test_each_model_has_turns_of_its_own():
    turns = Turns(0)
    waiting = all_waiting() | all_waiting(model="n")
    for _ in range(EACH):
        due(turns, waiting)
        turns.took(run(HIGH), MODELS)
    assert due(turns, waiting) == ["background.m"]


def test_only_what_waits_is_passed_over_and_only_by_what_takes_a_slot():
    turns = Turns(0)
    alone = {"interactive.m": since()}
    assert {*served(turns, alone, 3 * EACH)} == {HIGH}
    assert due(turns, all_waiting()) == []
    for _ in range(3 * EACH):
        turns.took(run(HIGH, kind=Kind.SEAT), MODELS)
        turns.took(run(HIGH, model="unknown"), MODELS)
        turns.took(Held("id"), MODELS)
    assert due(turns, all_waiting()) == []


def test_nothing_that_waits_needs_a_turn_once_all_queues_are_empty():
    turns = Turns(0)
    served(turns, all_waiting(), EACH - 1)
    assert due(turns, {}) == []
    assert due(turns, all_waiting()) == []


@given(
    st.dictionaries(st.sampled_from([*all_waiting(), "batch.n", "batch.any"]), st.floats(0, NOW)),
    st.integers(0, 20),
    st.floats(0, 1000),
)
def test_of_each_pool_one_list_at_most_goes_first_and_it_holds_something(times, slots, max_wait_s):
    waiting = {queue: since(at, queue) for queue, at in times.items()}
    first = due(Turns(max_wait_s), waiting, slots)
    queues = [name.partition(SEPARATOR)[0] for name in first]
    assert {*queues} <= {*waiting}
    pools = [MODELS[queue.partition(".")[2]] for queue in queues]
    assert len({*pools}) == len(pools)
