"""Loads: what they reserve, what stops them, and when they are tried again."""

import pytest

from gaelp_tasks.models.invocation import Tier
from gaelp_workers import controller, ledger
from gaelp_workers.decisions import Admit, Alert, Hold, HoldReason, Load, Unload, UnloadReason
from gaelp_workers.ledger import Footprint, Phase
from gaelp_workers.thresholds import GIB
from support.node_shown import FOOTPRINTS, LIMITS, TOTAL, holding, of_kind, reasons, run, shows


def test_a_model_whose_load_failed_takes_nobody_in_until_it_is_tried_again():
    state = controller.start(TOTAL, 0.0)._replace(rests={"a": 5.0})
    assert controller.capacity(state, shows(TOTAL), LIMITS)["a"] == 0
    assert controller.capacity(state._replace(at_s=5.0), shows(TOTAL), LIMITS)["a"] == 2


def test_an_unknown_size_is_reserved_with_the_safety_factor_and_a_measured_one_as_measured():
    waiting = {"b": (run(1),)}
    state, decisions = controller.step(
        controller.start(TOTAL, 0.0), shows(TOTAL, waiting=waiting), 0.0, LIMITS
    )
    assert of_kind(decisions, Load) == [Load("b", int(7 * GIB * 1.5))]
    assert state.models["b"].phase is Phase.LOADING
    seen = shows(24 * GIB, resident={"b": 8 * GIB}, waiting=waiting)
    state, decisions = controller.step(state, seen, 5.0, LIMITS)
    assert of_kind(decisions, Admit) == [Admit("r1", "b")]
    assert state.measured == {"b": 8 * GIB}
    again = controller.start(TOTAL, 9.0, state.measured)
    _, decisions = controller.step(again, shows(TOTAL, waiting=waiting), 9.0, LIMITS)
    assert of_kind(decisions, Load) == [Load("b", int(8 * GIB * ledger.MEASURED_FACTOR))]


def test_what_is_loading_counts_until_it_is_there():
    waiting = {"c": (run(1),), "b": (run(2, since_s=1.0),)}
    state, decisions = controller.step(
        controller.start(24 * GIB, 0.0), shows(24 * GIB, waiting=waiting), 2.0, LIMITS
    )
    assert [load.model for load in of_kind(decisions, Load)] == ["c"]
    # half of it has come; the other half and b do not fit together
    seen = shows(15 * GIB, resident={"c": 9 * GIB}, loaded=(), waiting=waiting)
    state, decisions = controller.step(state, seen, 3.0, LIMITS)
    assert not of_kind(decisions, Load)
    assert reasons(decisions) == {"c": HoldReason.LOADING, "b": HoldReason.PUT_OFF}
    # it is smaller than was reserved: now there is room
    seen = shows(16 * GIB, resident={"c": 8 * GIB}, waiting=waiting)
    _, decisions = controller.step(state, seen, 4.0, LIMITS)
    assert [load.model for load in of_kind(decisions, Load)] == ["b"]


def test_a_load_that_others_leave_no_room_for_is_stopped_before_anything_that_runs():
    state, _ = controller.step(
        holding(24 * GIB, a=4 * GIB),
        shows(24 * GIB, resident={"a": 4 * GIB}, waiting={"c": (run(1),)}),
        0.0,
        LIMITS,
    )
    assert state.models["c"].phase is Phase.LOADING
    running = {"a": (run(2, Tier.BACKGROUND),)}
    seen = shows(14 * GIB, resident={"a": 4 * GIB, "c": 0}, loaded={"a"}, running=running)
    _, decisions = controller.step(state, seen, 5.0, LIMITS)
    assert of_kind(decisions, Unload) == [Unload("c", UnloadReason.EVICTION, ())]


def test_a_load_that_failed_is_not_tried_again_at_once():
    waiting = {"b": (run(1),)}
    state, _ = controller.step(controller.start(TOTAL, 0.0), shows(TOTAL, waiting=waiting), 0.0, LIMITS)
    state, decisions = controller.step(state, shows(TOTAL, failed={"b"}, waiting=waiting), 1.0, LIMITS)
    assert of_kind(decisions, Hold) == [Hold("b", HoldReason.FAILED, 1.0 + LIMITS.load_again_s)]
    _, decisions = controller.step(state, shows(TOTAL, waiting=waiting), 1.0 + LIMITS.load_again_s, LIMITS)
    assert of_kind(decisions, Load)


def test_a_load_that_does_not_end_is_given_up_and_people_are_told():
    waiting = {"b": (run(1),)}
    state, _ = controller.step(controller.start(TOTAL, 0.0), shows(TOTAL, waiting=waiting), 0.0, LIMITS)
    state, decisions = controller.step(state, shows(TOTAL, waiting=waiting), LIMITS.load_s, LIMITS)
    assert of_kind(decisions, Unload) == [Unload("b", UnloadReason.LATE, ())]
    assert "b" in of_kind(decisions, Alert)[0].text
    assert not of_kind(decisions, Load)


@pytest.mark.parametrize(("model", "reason"), [("nobodys", HoldReason.UNKNOWN), ("huge", HoldReason.TOO_BIG)])
def test_what_can_never_run_here_says_so(model, reason):
    huge = {**FOOTPRINTS, "huge": Footprint(40 * GIB, GIB, 1)}
    seen = shows(TOTAL, waiting={model: (run(1),), "a": (run(2, since_s=5.0),)})._replace(footprints=huge)
    _, decisions = controller.step(controller.start(TOTAL, 0.0), seen, 6.0, LIMITS)
    assert reasons(decisions)[model] is reason
    assert [load.model for load in of_kind(decisions, Load)] == ["a"], "it stands in nobody's way"
