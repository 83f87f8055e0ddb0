"""Three models that do not fit together, an hour at a time; `python -m memory --three` is the long form."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks.models.invocation import Tier
from gaelp_workers.thresholds import Limits
from memory.firstcome import FastPath, FirstCome
from memory.node import Node
from memory.ours import Ours
from memory.plants import SWAPS, reaches_for_the_moon, swaps_at_once
from memory.table import COMPARED, one, spent
from memory.three import HOUR_S, SLOTS, Scene, hour, taken
from memory.traces import restless, trace
from memory.waits import THIRD, Waits, bound_s, longest, promises, round_s, started

LOAD = {Scene.ONE: 0.6, Scene.TWO: 0.6, Scene.SAME: 0.7, Scene.ENDLESS: 0.85}
PART_S = 1500.0  #: of the hour, which `python -m memory --three` runs whole


def part(scene, seed=7):
    return hour(scene, seed, LOAD[scene], PART_S)


@pytest.mark.parametrize("scene", Scene)
def test_everybody_has_a_turn_in_time_with_a_third_of_the_loads_of_the_order_of_arrival(scene):
    what = part(scene)
    first_come = spent(what, FirstCome) if scene in COMPARED else None
    assert promises(what, spent(what, Ours), first_come) == []


@pytest.mark.parametrize("name", SWAPS)
def test_a_planted_bug_is_seen(name):
    bug, scene = SWAPS[name]
    what = part(scene)
    first_come = spent(what, FirstCome) if scene in COMPARED else None
    with bug():
        assert promises(what, spent(what, Ours), first_come)


def test_without_a_controller_models_starve_or_the_queue_never_ends():
    endless, mixed = part(Scene.ENDLESS), part(Scene.ONE)
    starved = spent(endless, FastPath)
    assert starved.turns[Tier.BATCH] > PART_S / 2 > bound_s(endless, Tier.BATCH)
    in_order, ours = spent(mixed, FirstCome), spent(mixed, Ours)
    assert in_order.ended_s > 2 * PART_S, "it spends its time on loads"
    assert ours.ended_s < 1.1 * PART_S
    assert in_order.turns[Tier.INTERACTIVE] > bound_s(mixed, Tier.INTERACTIVE) > ours.turns[Tier.INTERACTIVE]


def test_no_model_waits_for_one_that_cannot_be_loaded():
    what = taken(7, PART_S)

    def waited():
        node = Node(what)
        tally = node.run(Ours(node))
        assert (tally.done, tally.kills, tally.broken) == (len(what.jobs), 0, [])
        return {name: longest(node, name, what.jobs, started(node)) for name in what.models}

    bound = bound_s(what, Tier.BATCH)
    before = waited()
    assert max(before["a"], before["b"]) < bound < PART_S / 2 < before["c"]
    with reaches_for_the_moon():
        after = waited()
        assert max(after["a"], after["b"]) > bound


@pytest.mark.parametrize("kind", [trace, restless])
def test_whatever_others_do_to_memory_every_run_is_finished_in_the_end(kind):
    for seed in range(7, 13):
        what = kind(seed)._replace(length_s=HOUR_S, ends_when_done=True)
        node = Node(what)
        assert node.run(Ours(node)).done == len(what.jobs)


# The hours


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(Scene), st.integers(0, 10**6))
def test_as_many_models_fit_as_a_scene_says(scene, seed):
    what = part(scene, seed)
    usable = what.total_bytes - Limits().soft_line(what.total_bytes) - what.others[0][1]
    sizes = sorted(1.05 * model.true_bytes for model in what.models.values())
    at_once = 2 if scene is Scene.TWO else 1
    assert sum(sizes[-at_once:]) < usable < sum(sizes[: at_once + 1])
    assert all(1.5 * model.footprint.total_bytes < usable for model in what.models.values()), "at first"
    assert [job.at_s for job in what.jobs] == sorted(job.at_s for job in what.jobs)
    assert {job.model for job in what.jobs} == set(what.models)


@pytest.mark.parametrize("scene", COMPARED)
def test_the_slots_are_busy_for_the_share_of_the_hour_that_was_asked_for(scene):
    what = hour(scene, 7, 0.6)
    at_once = 2 if scene is Scene.TWO else 1
    share = sum(job.lasts_s for job in what.jobs) / (at_once * SLOTS * HOUR_S)
    assert share == pytest.approx(0.6, rel=0.1)


def test_endless_is_without_end():
    what = part(Scene.ENDLESS)
    until = 0.0
    for job in (job for job in what.jobs if job.model == "a"):
        assert job.at_s <= until
        until = max(until, job.at_s + job.lasts_s)
    assert until > PART_S


# The judge


def alone(**changes):
    """An hour of one tier, and what it was like for somebody who waited for nothing."""
    what = part(Scene.SAME)
    ours = Waits(arrived=10, done=10, ended_s=9.0, loads=5, turns=dict.fromkeys(Tier, 0.0))
    for name, value in changes.items():
        setattr(ours, name, value)
    first_come = Waits(arrived=10, done=10, ended_s=9.0, loads=int(5 / THIRD), turns={})
    return promises(what, ours, first_come)


def test_each_promise_is_judged():
    bound = bound_s(part(Scene.SAME), Tier.BATCH)
    assert alone() == []
    assert alone(turns={Tier.BATCH: bound}) == []
    assert len(alone(turns={Tier.BATCH: bound + 0.1})) == 1
    assert len(alone(loads=6)) == 1
    assert len(alone(done=9)) == 1
    assert len(alone(broken=["any"])) == 1


def test_the_bound_is_a_round_for_every_model_and_the_maximum_where_tiers_are_higher():
    same, mixed, limits = part(Scene.SAME), part(Scene.ONE), Limits()
    longest_load = max(model.load_s + model.kv_s for model in same.models.values())
    one = 30.0 + 1.0 + 0.03 + max(job.lasts_s for job in same.jobs) + 2.0 + longest_load
    assert round_s(same, limits) == pytest.approx(one)
    assert bound_s(same, Tier.BATCH) == pytest.approx(3 * one - 30.0)
    assert bound_s(mixed, Tier.BATCH) == pytest.approx(bound_s(mixed, Tier.INTERACTIVE) + 600.0)


def test_a_turn_is_waited_for_from_arrival_or_from_the_last_run_that_was_let_in():
    what = part(Scene.SAME)
    job = what.jobs[0]
    jobs = [
        job._replace(id="1", model="a", at_s=1.0, lasts_s=3.0),
        job._replace(id="2", model="a", at_s=5.0, lasts_s=3.0),
        job._replace(id="3", model="a", at_s=6.0, lasts_s=3.0),
    ]
    node = Node(what._replace(jobs=jobs))
    for starts in ([(4.0, "1")], [(9.0, "2"), (30.0, "3")]):
        node.load("a")
        node.served.pop("a").starts.extend(starts)
    assert longest(node, "a", jobs, started(node)) == 4.0, (
        "9 - 5; the third waited for a slot, not for a turn"
    )
    assert longest(node, "a", jobs[:1], started(node)) == 3.0
    assert longest(node, "b", jobs, started(node)) == 0.0


def test_the_table_shows_all_three_and_what_is_broken():
    lines = []
    assert one(Scene.ONE, 0.5, 7, lambda *said: lines.extend(said), 300.0) == []
    assert [line.split()[0] for line in lines] == ["one", "ours", "arrival", "fast"]
    lines.clear()
    with swaps_at_once():
        broken = one(Scene.SAME, 0.7, 7, lambda *said: lines.extend(said), 300.0)
    assert broken
    assert lines[-1] == f"  BROKEN: {broken[-1]}"


# Without a controller


def test_the_order_of_arrival_is_kept_whatever_is_loaded():
    what = part(Scene.ONE)
    node = Node(what)
    node.run(FirstCome(node))
    starts = started(node)
    assert [starts[job.id] for job in what.jobs] == sorted(starts.values())
    assert node.tally.broken == []
    assert node.tally.kills == 0


def test_on_the_fast_path_the_oldest_of_a_loaded_model_goes_first():
    what = part(Scene.SAME)
    node = Node(what)
    node.run(FastPath(node))
    starts = started(node)
    of_a = [starts[job.id] for job in what.jobs if job.model == "a"]
    assert of_a == sorted(of_a)
    assert (node.tally.broken, node.tally.kills) == ([], 0)
