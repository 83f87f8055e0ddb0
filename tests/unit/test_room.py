"""Room for a model that waits: who goes for it, when, and what is never cut for it."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models.invocation import Tier
from gaelp_workers import controller
from gaelp_workers.decisions import Admit, Hold, HoldReason, Load, Unload, UnloadReason
from gaelp_workers.eviction import unused
from gaelp_workers.ledger import Phase
from gaelp_workers.thresholds import GIB, Level
from support.node_shown import LIMITS, TOTAL, holding, of_kind, reasons, run, shows


def test_an_idle_model_makes_room_and_nothing_starts_until_its_memory_is_back():
    waiting = {"c": (run(1),)}
    state = holding(8 * GIB, b=7 * GIB, a=4 * GIB)._replace(measured={"c": 10 * GIB})
    seen = shows(8 * GIB, resident={"b": 7 * GIB, "a": 4 * GIB}, waiting=waiting)
    state, decisions = controller.step(state, seen, 1.0, LIMITS)
    assert of_kind(decisions, Unload) == [Unload("b", UnloadReason.ROOM, ())]
    more = {**waiting, "a": (run(2),)}
    state, decisions = controller.step(
        state, shows(9 * GIB, resident={"a": 4 * GIB}, waiting=more), 1.1, LIMITS
    )
    assert reasons(decisions) == dict.fromkeys("ac", HoldReason.VERIFYING)
    _, decisions = controller.step(state, shows(15 * GIB, resident={"a": 4 * GIB}, waiting=more), 1.2, LIMITS)
    assert [load.model for load in of_kind(decisions, Load)] == ["c"]
    assert of_kind(decisions, Admit) == [Admit("r2", "a")]


def test_memory_that_never_comes_back_is_waited_for_so_long_only():
    state = holding(8 * GIB, b=7 * GIB, a=4 * GIB)._replace(measured={"c": 10 * GIB})
    state, _ = controller.step(
        state, shows(8 * GIB, resident={"b": 7 * GIB, "a": 4 * GIB}, waiting={"c": (run(1),)}), 1.0, LIMITS
    )
    assert state.back is not None
    seen = shows(8 * GIB, resident={"a": 4 * GIB}, waiting={"a": (run(2),)})
    state, decisions = controller.step(state, seen, 1.0 + LIMITS.verify_s, LIMITS)
    assert state.back is None
    assert of_kind(decisions, Admit) == [Admit("r2", "a")]


def test_a_model_that_stays_after_its_unload_is_unloaded_again():
    state = holding(8 * GIB, phase=Phase.UNLOADING, b=7 * GIB)
    held = state.models["b"]._replace(until_s=2.0)
    state = state._replace(models={"b": held})
    _, decisions = controller.step(state, shows(8 * GIB, resident={"b": 7 * GIB}), 2.0, LIMITS)
    assert of_kind(decisions, Unload) == [Unload("b", UnloadReason.LATE, ())]


def busy_node(waits_since_s, tier=Tier.BATCH, now=LIMITS.swap_s):
    """Model b runs in the batch tier and has more to do; c waits."""
    state = holding(8 * GIB, b=7 * GIB)
    return state, shows(
        8 * GIB,
        resident={"b": 7 * GIB},
        running={"b": (run(1, since_s=now - 1),)},
        waiting={"b": (run(2, since_s=now),), "c": (run(3, tier, waits_since_s),)},
    )


def test_loaded_models_go_first_within_a_tier_but_not_for_ever():
    state, seen = busy_node(waits_since_s=5.0)
    _, decisions = controller.step(state._replace(measured={"c": 10 * GIB}), seen, LIMITS.swap_s, LIMITS)
    assert Hold("c", HoldReason.PUT_OFF, 5.0 + LIMITS.swap_s) in decisions
    state, seen = busy_node(waits_since_s=0.0)
    state, decisions = controller.step(state._replace(measured={"c": 10 * GIB}), seen, LIMITS.swap_s, LIMITS)
    assert reasons(decisions) == {"b": HoldReason.BUSY, "c": HoldReason.MAKING_ROOM}
    assert not of_kind(decisions, Unload), "what runs is not cut for a swap"
    # its run ends: nothing more starts on it, and it goes
    seen = seen._replace(running={})
    state, decisions = controller.step(state, seen, LIMITS.swap_s + 1, LIMITS)
    assert not of_kind(decisions, Admit)
    assert of_kind(decisions, Unload) == [Unload("b", UnloadReason.ROOM, ())]


def test_a_higher_tier_waits_for_no_bound():
    state, seen = busy_node(waits_since_s=LIMITS.swap_s, tier=Tier.INTERACTIVE)
    _, decisions = controller.step(state._replace(measured={"c": 10 * GIB}), seen, LIMITS.swap_s, LIMITS)
    assert reasons(decisions)["c"] is HoldReason.MAKING_ROOM


def test_another_lower_tier_waits_as_long_as_the_same_one():
    state, seen = busy_node(waits_since_s=5.0)
    seen = seen._replace(running={"b": (run(1, Tier.BACKGROUND),)}, waiting={"c": (run(3, since_s=5.0),)})
    state = state._replace(measured={"c": 10 * GIB})
    _, decisions = controller.step(state, seen, LIMITS.swap_s, LIMITS)
    assert Hold("c", HoldReason.PUT_OFF, 5.0 + LIMITS.swap_s) in decisions
    _, decisions = controller.step(state, seen, 5.0 + LIMITS.swap_s, LIMITS)
    assert reasons(decisions)["c"] is HoldReason.MAKING_ROOM


def kept_busy(now, **waiting):
    """Interactive runs keep b busy; c waits in a lower tier since 5.0 s."""
    state = holding(8 * GIB, b=7 * GIB)._replace(measured={"c": 10 * GIB}, at_s=now)
    return state, shows(
        8 * GIB,
        resident={"b": 7 * GIB},
        running={"b": (run(1, Tier.INTERACTIVE, now - 1),)},
        waiting={"c": (run(3, Tier.BACKGROUND, 5.0),), **waiting},
    )


def test_a_lower_tier_waits_for_higher_ones_but_not_for_ever():
    ends_s = 5.0 + LIMITS.most_wait_s
    state, seen = kept_busy(ends_s - 0.1)
    _, decisions = controller.step(state, seen, ends_s - 0.1, LIMITS)
    assert of_kind(decisions, Hold) == [Hold("c", HoldReason.TIERS, ends_s)]
    state, _ = controller.step(state, seen, ends_s, LIMITS)
    assert state.models["b"] == state.models["b"]._replace(phase=Phase.DRAINING, room_for="c")


def test_room_that_was_made_after_the_maximum_is_not_taken_by_the_higher_tier():
    now = 5.0 + LIMITS.most_wait_s
    state, seen = kept_busy(now, b=(run(2, Tier.INTERACTIVE, now),))
    state, decisions = controller.step(state, seen, now, LIMITS)
    assert reasons(decisions) == {"b": HoldReason.BUSY, "c": HoldReason.MAKING_ROOM}
    state, decisions = controller.step(state, seen._replace(running={}), now + 1, LIMITS)
    assert of_kind(decisions, Unload) == [Unload("b", UnloadReason.ROOM, ())]
    seen = shows(15 * GIB, waiting=seen.waiting)
    _, decisions = controller.step(state, seen, now + 2, LIMITS)
    assert [load.model for load in of_kind(decisions, Load)] == ["c"]
    assert reasons(decisions)["c"] is HoldReason.LOADING


def test_after_its_turn_a_model_waits_from_then_on():
    state, seen = kept_busy(700.0)
    state = state._replace(served={"c": 650.0})
    _, decisions = controller.step(state, seen, 700.0, LIMITS)
    assert of_kind(decisions, Hold) == [Hold("c", HoldReason.TIERS, 650.0 + LIMITS.most_wait_s)]
    state = holding(24 * GIB, a=4 * GIB)._replace(served={"b": 1.0})
    seen = shows(24 * GIB, resident={"a": 4 * GIB}, waiting={"a": (run(1),)})
    state, _ = controller.step(state, seen, 3.0, LIMITS)
    assert state.served == {"a": 3.0, "b": 1.0}
    state, _ = controller.step(state, seen._replace(waiting={}), 4.0, LIMITS)
    assert state.served == {"a": 3.0, "b": 1.0}
    # somebody else has let them in
    seen = seen._replace(waiting={}, running={"a": (run(1, since_s=2.0), run(2, since_s=4.5))})
    state, _ = controller.step(state, seen, 5.0, LIMITS)
    assert state.served == {"a": 4.5, "b": 1.0}


def test_where_there_is_no_maximum_a_lower_tier_waits_and_nobody_can_tell_how_long():
    state, seen = kept_busy(5000.0)
    _, decisions = controller.step(state, seen, 5000.0, LIMITS._replace(most_wait_s=inf))
    assert of_kind(decisions, Hold) == [Hold("c", HoldReason.TIERS, None)]


def test_the_oldest_of_the_highest_tier_counts_whatever_is_to_run_first():
    state, seen = busy_node(waits_since_s=0.0)
    urgent_first = (run(4, Tier.BATCH, 29.0), run(3, Tier.BATCH, 0.0), run(5, Tier.BACKGROUND, -60.0))
    long_ago = {"b": state.models["b"]._replace(since_s=-100.0)}
    state = state._replace(measured={"c": 10 * GIB}, models=long_ago)
    seen = seen._replace(waiting={"c": urgent_first})
    _, decisions = controller.step(state, seen, LIMITS.swap_s - 0.1, LIMITS)
    assert of_kind(decisions, Hold) == [Hold("c", HoldReason.PUT_OFF, LIMITS.swap_s)]
    _, decisions = controller.step(state, seen, LIMITS.swap_s, LIMITS)
    assert reasons(decisions) == {"c": HoldReason.MAKING_ROOM}


def draining(free, now, **waiting):
    """Model b drains for c."""
    state = holding(free, b=7 * GIB)._replace(measured={"c": 10 * GIB}, at_s=now)
    held = {"b": state.models["b"]._replace(phase=Phase.DRAINING, room_for="c")}
    running = {"b": (run(1, since_s=now - 1),)}
    return state._replace(models=held), shows(free, resident={"b": 7 * GIB}, running=running, waiting=waiting)


def test_a_drain_ends_where_others_take_the_room_and_nobody_waits_for_it():
    waiting = {"b": (run(2),), "c": (run(3),)}
    state, seen = draining(8 * GIB, 40.0, **waiting)
    state, _ = controller.step(state, seen, 40.0, LIMITS)
    assert state.models["b"].phase is Phase.DRAINING
    seen = shows(6 * GIB, resident={"b": 7 * GIB}, waiting=waiting)
    state, decisions = controller.step(state, seen, 42.0, LIMITS)
    assert state.models["b"].phase is Phase.LOADED
    assert of_kind(decisions, Admit) == [Admit("r2", "b")]
    assert Hold("c", HoldReason.ROOM, None) in decisions


def test_what_cannot_have_its_room_keeps_it_from_nobody():
    waiting = {"c": (run(1, since_s=-100.0),), "b": (run(2),)}
    state = holding(10 * GIB, a=4 * GIB)._replace(measured={"c": 13 * GIB, "b": 4 * GIB})
    seen = shows(10 * GIB, resident={"a": 4 * GIB}, running={"a": (run(3),)}, waiting=waiting)
    _, decisions = controller.step(state, seen, 1.0, LIMITS)
    assert [load.model for load in of_kind(decisions, Load)] == ["b"]
    assert reasons(decisions)["c"] is HoldReason.ROOM


def test_a_drain_ends_when_a_higher_tier_comes_to_that_model():
    waiting = {"b": (run(2, Tier.INTERACTIVE),), "c": (run(3),)}
    state, seen = draining(8 * GIB, 40.0, **waiting)
    running = {"b": ()}
    state, decisions = controller.step(state, seen._replace(running=running), 40.0, LIMITS)
    assert of_kind(decisions, Admit) == [Admit("r2", "b")]
    assert Hold("c", HoldReason.TIERS, LIMITS.most_wait_s) in decisions


def test_what_drains_already_makes_room_for_whoever_is_first():
    state, seen = draining(8 * GIB, 40.0, c=(run(3),), a=(run(4, Tier.INTERACTIVE, 39.0),))
    state = state._replace(measured={"c": 10 * GIB, "a": 9 * GIB})
    state, decisions = controller.step(state, seen, 40.0, LIMITS)
    assert state.models["b"].room_for == "a"
    assert reasons(decisions) == {"a": HoldReason.MAKING_ROOM, "c": HoldReason.TURN}


def two_busy(**changes):
    """Models a and b are busy, either would make room for c, which is overdue."""
    state = holding(8 * GIB, a=4 * GIB, b=4 * GIB)._replace(measured={"c": 7 * GIB}, at_s=100.0)
    models = {name: held._replace(**changes.get(name, {})) for name, held in state.models.items()}
    running = {"a": (run(1, since_s=50.0),), "b": (run(2, since_s=90.0),)}
    resident = {"a": 4 * GIB, "b": 4 * GIB}
    return state._replace(models=models), shows(
        8 * GIB, resident=resident, running=running, waiting={"c": (run(3),)}
    )


def phases(state):
    return {name: held.phase for name, held in state.models.items()}


def test_the_model_that_loses_the_least_work_is_drained_and_no_other_after_it():
    state, seen = two_busy()
    state, _ = controller.step(state, seen, 100.0, LIMITS)
    assert phases(state) == {"a": Phase.LOADED, "b": Phase.DRAINING}
    state, seen = two_busy(a={"phase": Phase.DRAINING, "room_for": "c"})
    state, _ = controller.step(state, seen, 100.0, LIMITS)
    assert phases(state) == {"a": Phase.DRAINING, "b": Phase.LOADED}


def test_a_higher_tier_is_not_drained_where_a_lower_one_only_has_to_stay_for_a_while():
    state, seen = two_busy(b={"since_s": 90.0})
    seen = seen._replace(running={"a": (run(1, Tier.INTERACTIVE, 99.0),), "b": (run(2, since_s=90.0),)})
    state, decisions = controller.step(state, seen, 100.0, LIMITS)
    assert Hold("c", HoldReason.PUT_OFF, 90.0 + LIMITS.swap_s) in decisions
    state, _ = controller.step(state, seen, 90.0 + LIMITS.swap_s, LIMITS)
    assert phases(state) == {"a": Phase.LOADED, "b": Phase.DRAINING}


def test_an_idle_model_that_was_loaded_just_now_stays_a_while_where_others_run():
    def decide(now, *, tier=Tier.BATCH, running=True, since_s=0.0):
        state = holding(8 * GIB, b=7 * GIB, a=4 * GIB)._replace(measured={"c": 9 * GIB}, at_s=now)
        seen = shows(
            8 * GIB,
            resident={"b": 7 * GIB, "a": 4 * GIB},
            running={"a": (run(2),)} if running else {},
            waiting={"c": (run(1, tier, since_s),)},
        )
        return controller.step(state, seen, now, LIMITS)[1]

    assert of_kind(decide(1.0), Hold) == [Hold("c", HoldReason.PUT_OFF, LIMITS.swap_s)]
    assert of_kind(decide(LIMITS.swap_s, since_s=29.0), Unload) == [Unload("b", UnloadReason.ROOM, ())]
    assert of_kind(decide(1.0, since_s=1.0 - LIMITS.swap_s), Unload)
    assert of_kind(decide(1.0, tier=Tier.INTERACTIVE), Unload), "somebody sits and waits"
    assert of_kind(decide(1.0, running=False), Unload), "the node would do nothing at all"


sizes = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 20))


@given(sizes, st.dictionaries(st.sampled_from("abcde"), st.floats(0, 100)), st.integers(-5, 120))
def test_idle_models_go_that_are_unused_for_longest_and_none_in_vain(idle, served, short):
    gone = unused(idle, served, short)
    freed = sum(idle[name] for name in gone)
    assert freed >= min(short, sum(idle.values()))
    if freed >= short:
        assert all(freed - idle[name] < short for name in gone), "none in vain"
    by_use = sorted(idle, key=lambda name: (served.get(name, -1.0), -idle[name], name))
    assert gone == [name for name in by_use if name in gone]
    if gone:
        older = by_use[: by_use.index(gone[-1])]
        assert sum(idle[name] for name in older) < short, "no newer one where older ones would do"


def test_a_busy_model_is_not_drained_before_it_was_loaded_for_a_while():
    state, seen = busy_node(waits_since_s=-100.0, now=20.0)
    state = state._replace(measured={"c": 10 * GIB}, models={"b": state.models["b"]._replace(since_s=15.0)})
    _, decisions = controller.step(state, seen, 20.0, LIMITS)
    assert Hold("c", HoldReason.PUT_OFF, 15.0 + LIMITS.swap_s) in decisions
    _, decisions = controller.step(state, seen, 15.0 + LIMITS.swap_s, LIMITS)
    assert reasons(decisions)["c"] is HoldReason.MAKING_ROOM


def test_a_model_drained_for_nobody_goes_on():
    state = holding(8 * GIB, phase=Phase.DRAINING, b=7 * GIB)
    seen = shows(8 * GIB, resident={"b": 7 * GIB}, waiting={"b": (run(1),)})
    state, decisions = controller.step(state, seen, 1.0, LIMITS)
    assert of_kind(decisions, Admit) == [Admit("r1", "b")]
    assert state.models["b"].phase is Phase.LOADED


def test_a_model_of_others_is_used_and_never_unloaded():
    seen = shows(GIB, resident={"theirs": 2 * GIB}, running={"theirs": (run(1),)}, waiting={"c": (run(2),)})
    state, decisions = controller.step(controller.start(TOTAL, 0.0), seen, 1.0, LIMITS)
    assert state.level is Level.HARD
    assert not of_kind(decisions, Unload)
    seen = shows(TOTAL - 2 * GIB, resident={"theirs": 2 * GIB}, waiting={"theirs": (run(1), run(2))})
    _, decisions = controller.step(controller.start(TOTAL, 0.0), seen, 1.0, LIMITS)
    assert of_kind(decisions, Admit) == [Admit("r1", "theirs")]
