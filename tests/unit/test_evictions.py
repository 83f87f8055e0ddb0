"""Memory that runs short: who gives way, in which order, and how soon."""

from gaelp_tasks.models.invocation import Tier
from gaelp_workers import controller, eviction
from gaelp_workers.decisions import Admit, Alert, HoldReason, Load, NextPoll, Unload, UnloadReason
from gaelp_workers.eviction import victims
from gaelp_workers.thresholds import GIB, Level
from support.node_shown import LIMITS, TOTAL, holding, of_kind, reasons, run, shows

# Evicting


def test_the_lowest_tier_gives_way_then_the_least_work_then_the_most_bytes():
    models = dict.fromkeys(["idle", "background", "batch", "young", "old", "small"], 4 * GIB)
    models["big"], models["small"] = 5 * GIB, GIB
    running = {
        "background": (run(1, Tier.BACKGROUND, 0.0),),
        "batch": (run(2, Tier.BATCH, 50.0), run(3, Tier.BACKGROUND, 0.0)),
        "young": (run(4, Tier.INTERACTIVE, 90.0),),
        "old": (run(5, Tier.INTERACTIVE, 10.0),),
        "big": (run(6, Tier.INTERACTIVE, 50.0),),
        "small": (run(7, Tier.INTERACTIVE, 50.0),),
    }
    order = ["idle", "background", "batch", "young", "big", "small", "old"]
    assert victims(models, running, 1 << 50, now=100.0) == order
    assert victims(models, running, 5 * GIB, now=100.0) == order[:2], "as many as are needed"
    assert victims(models, running, 0, now=100.0) == []


def test_below_the_reserve_the_cheapest_model_goes_and_its_runs_are_given_back():
    state = holding(4 * GIB, a=4 * GIB, b=7 * GIB)
    running = {"a": (run(1, Tier.BACKGROUND), run(2, Tier.BATCH)), "b": (run(3, Tier.INTERACTIVE),)}
    seen = shows(
        2 * GIB - 1, resident={"a": 4 * GIB, "b": 7 * GIB}, running=running, waiting={"a": (run(4),)}
    )
    state, decisions = controller.step(state, seen, 10.0, LIMITS)
    assert of_kind(decisions, Unload) == [Unload("a", UnloadReason.EVICTION, ("r1", "r2"))]
    assert reasons(decisions) == {"a": HoldReason.HARD}
    # it is coming back: the interactive one is spared
    state, decisions = controller.step(
        state, shows(2 * GIB, resident={"b": 7 * GIB}, running=running), 10.1, LIMITS
    )
    assert not of_kind(decisions, Unload)


def test_a_fast_fall_is_met_before_it_reaches_the_reserve():
    state = holding(8 * GIB, a=4 * GIB)
    resident = {"a": 4 * GIB}
    _, decisions = controller.step(state, shows(4 * GIB, resident=resident), 4.0, LIMITS)
    assert not of_kind(decisions, Unload), "1 GiB/s, in half a second there is still enough"
    _, decisions = controller.step(state, shows(4 * GIB, resident=resident), 0.5, LIMITS)
    assert of_kind(decisions, Unload), "8 GiB/s"


def test_memory_that_does_not_come_back_in_time_is_fetched_elsewhere():
    state = holding(4 * GIB, a=4 * GIB, b=7 * GIB)
    seen = shows(GIB, resident={"a": 4 * GIB, "b": 7 * GIB}, running={"b": (run(1),)})
    state, decisions = controller.step(state, seen, 9.0, LIMITS)
    assert [unload.model for unload in of_kind(decisions, Unload)] == ["a"]
    seen = shows(GIB, resident={"b": 7 * GIB}, running={"b": (run(1),)})
    state, decisions = controller.step(state, seen, 9.1, LIMITS)
    assert not of_kind(decisions, Unload)
    _, decisions = controller.step(state, seen, 9.2 + LIMITS.react_s, LIMITS)
    assert [unload.model for unload in of_kind(decisions, Unload)] == ["b"]


def test_where_memory_is_all_but_gone_everything_stops_and_people_are_told():
    state = holding(4 * GIB, a=4 * GIB, b=7 * GIB)
    running = {"a": (run(1),), "b": (run(3, Tier.INTERACTIVE),)}
    seen = shows(GIB // 4, resident={"a": 4 * GIB, "b": 7 * GIB}, running=running, waiting={"c": (run(4),)})
    state, decisions = controller.step(state, seen, 10.0, LIMITS)
    assert {unload.model for unload in of_kind(decisions, Unload)} == {"a", "b"}
    assert {unload.reason for unload in of_kind(decisions, Unload)} == {UnloadReason.CRITICAL}
    assert "all but gone" in of_kind(decisions, Alert)[0].text
    assert reasons(decisions) == {"c": HoldReason.CRITICAL}
    _, decisions = controller.step(state, shows(GIB // 4), 10.1, LIMITS)
    assert not of_kind(decisions, Alert), "once"


# Thresholds


def test_in_the_soft_range_nothing_is_loaded_and_loaded_models_go_on():
    free = LIMITS.soft_line(TOTAL) + LIMITS.relief(TOTAL) - 1
    seen = shows(free, resident={"a": 4 * GIB}, waiting={"a": (run(1),), "b": (run(2),)})
    state = holding(free, a=4 * GIB)._replace(measured={"b": 1000}, level=Level.SOFT)
    state, decisions = controller.step(state, seen, 1.0, LIMITS)
    assert state.level is Level.SOFT
    assert of_kind(decisions, Admit) == [Admit("r1", "a")]
    assert reasons(decisions) == {"b": HoldReason.SOFT}
    _, decisions = controller.step(state._replace(level=Level.EASY), seen, 1.1, LIMITS)
    assert [load.model for load in of_kind(decisions, Load)] == ["b"]


def test_a_node_on_which_nothing_is_ours_is_not_watched_closely():
    _, decisions = controller.step(controller.start(GIB, 0.0), shows(GIB), 1.0, LIMITS)
    assert decisions == (NextPoll(LIMITS.poll_s),)


def test_tiers_rank_as_they_are_listed():
    assert [eviction.RANKS[tier] for tier in Tier] == [tier.rank for tier in Tier]
