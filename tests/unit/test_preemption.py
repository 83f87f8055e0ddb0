"""Who makes way for a higher tier."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.tasks.invoke import invoke_agent
from gaelp_workers.dispatch import INVOKES, OTHERS, Capacity, Held, Kind
from gaelp_workers.preemption import PREEMPTED_AT_MOST, beyond, may_go, victims

MODELS = {"m": "m:1b", "any": "m:1b", "other": "other:1b"}
HIGH, MIDDLE, LOW = Tier
pools = st.sampled_from(["m", "any", "other", "unknown"])
tasks = st.builds(
    Held,
    id=st.just("id"),
    kind=st.sampled_from(Kind),
    alone=st.booleans(),
    task=st.sampled_from([INVOKES, "my.task"]),
    model=pools,
    tier=st.sampled_from(Tier) | st.none(),
    since_s=st.floats(0, 100),
    preempted=st.integers(0, PREEMPTED_AT_MOST),
    turn=st.booleans(),
)
several = st.lists(tasks, max_size=12).map(lambda found: {str(at): task for at, task in enumerate(found)})


def run(tier: Tier, since_s: float = 0.0, model: str = "m", **more) -> Held:
    return Held("id", task=INVOKES, tier=tier, since_s=since_s, model=model, **more)


def capacity(slots: int) -> Capacity:
    return Capacity({"m:1b": slots, "other:1b": slots}, MODELS, slots, 0)


def chosen(held: dict[str, Held], *pushing: str, slots: int = 1) -> list[str]:
    return victims(held, set(held) - set(pushing), pushing, capacity(slots))


def test_of_one_tier_who_writes_goes_first_then_who_had_to_go_least_then_the_newest():
    held = {
        "reads": run(LOW, 9.0)._replace(id="reads"),
        "patient": run(LOW, 8.0, preempted=2)._replace(id="patient"),
        "older": run(LOW, 1.0, preempted=1)._replace(id="older"),
        "newer": run(LOW, 2.0, preempted=1)._replace(id="newer"),
    } | {f"new{at}": run(HIGH, 10.0) for at in range(4)}
    pushing = [f"new{at}" for at in range(4)]
    begun = set(held) - set(pushing)
    order = victims(held, begun, pushing, capacity(4), writing={"patient", "older", "newer"})
    assert order == ["newer", "older", "patient", "reads"]


def test_the_task_that_is_preempted_is_the_one_that_invokes():
    assert invoke_agent.name == INVOKES


@pytest.mark.parametrize(
    "spared",
    [
        run(LOW, turn=True),
        run(LOW, alone=True),
        run(LOW, preempted=PREEMPTED_AT_MOST),
        run(LOW, kind=Kind.SEAT),
        run(LOW)._replace(task="my.task"),
        run(HIGH),
    ],
)
def test_some_never_make_way(spared):
    assert chosen({"1": spared, "new": run(HIGH)}, "new") == []
    assert (OTHERS, HIGH) not in beyond([spared], MODELS)
    assert beyond([spared], MODELS).get(("m:1b", HIGH), 0) == 0


def test_the_newest_of_the_lowest_tier_goes_first():
    held = {"a": run(MIDDLE, 9), "b": run(LOW, 1), "c": run(LOW, 2, model="any"), "d": run(LOW, 9, "other")}
    new = {str(at): run(HIGH, 10) for at in range(4)}
    assert chosen(held | new, *new, slots=3) == ["c", "b", "a"], "there is nobody left to go for the last one"


def test_an_equal_tier_stays():
    assert chosen({"a": run(MIDDLE, 1), "new": run(MIDDLE, 2)}, "new") == []
    assert chosen({"a": run(LOW, 1), "new": run(MIDDLE, 2)}, "new") == ["a"]


def test_nobody_goes_where_somebody_has_left_meanwhile():
    held = {"a": run(LOW, 1), "new": run(HIGH, 2)}
    assert chosen(held, "new", slots=2) == []
    assert chosen(held | {"b": run(LOW, 0)}, "new", slots=2) == ["a"]


def test_what_is_running_above_a_lowered_limit_is_left_alone_but_for_one():
    held = {str(at): run(LOW, at) for at in range(4)}
    assert chosen(held | {"new": run(HIGH, 9)}, "new", slots=1) == ["3"]


@given(several, st.lists(st.sampled_from(Tier), max_size=4), st.integers(0, 6))
def test_each_that_pushes_has_one_lower_run_stopped_at_most_and_none_twice(held, tiers, slots):
    pushing = {f"new {at}": run(tier, 200.0) for at, tier in enumerate(tiers)}
    going = victims(held | pushing, set(held), pushing, capacity(slots))
    assert len(set(going)) == len(going) <= len(pushing)
    for tag in going:
        task = held[tag]
        assert may_go(task)
        assert MODELS[task.model] == "m:1b"
        assert task.tier is not None
        assert task.tier.rank > min(tier.rank for tier in tiers)


@given(several)
def test_so_many_slots_count_as_free_as_there_are_runs_to_stop(held):
    found = beyond(list(held.values()), MODELS)
    for tier in Tier:
        for pool in ("m:1b", "other:1b"):
            names = [name for name, model in MODELS.items() if model == pool]
            count = found.get((pool, tier), 0)
            pushing = {f"new {at}": run(tier, 200.0, names[0]) for at in range(count + 1)}
            going = victims(held | pushing, set(held), pushing, capacity(0))
            assert len(going) == count, "not one more"
    assert all(pool != OTHERS for pool, _ in found)


@given(several)
def test_a_higher_tier_may_take_all_that_a_lower_one_may(held):
    found = Counter(beyond(list(held.values()), MODELS))
    for pool in ("m:1b", "other:1b"):
        assert found[pool, HIGH] >= found[pool, MIDDLE] >= found[pool, LOW] == 0
