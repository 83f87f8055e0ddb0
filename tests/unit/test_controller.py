"""What the memory controller decides, whatever a node shows it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks.models.invocation import Tier
from gaelp_workers import controller, eviction, ledger
from gaelp_workers.decisions import (
    Admit,
    Alert,
    Hold,
    HoldReason,
    Load,
    NextPoll,
    Snapshot,
    State,
    Unload,
    UnloadReason,
)
from gaelp_workers.eviction import Run, victims
from gaelp_workers.ledger import Footprint, Held, Phase
from gaelp_workers.thresholds import GIB, Level, Limits, Trend
from support.imports import imports, within

LIMITS = Limits()
TOTAL = 32 * GIB
FOOTPRINTS = {
    "a": Footprint(2 * GIB, GIB, 2),
    "b": Footprint(6 * GIB, GIB, 1),
    "c": Footprint(8 * GIB, GIB, 4),
    "theirs": Footprint(GIB, GIB, 1),
}
PURE = ("controller", "decisions", "admission", "ledger", "thresholds", "eviction")


def shows(free, *, resident=None, loaded=None, failed=(), running=None, waiting=None, total=TOTAL):
    """A snapshot; what is loaded is what is resident, unless told."""
    resident = resident or {}
    return Snapshot(
        total_bytes=total,
        free_bytes=int(free),
        resident=resident,
        loaded=frozenset(resident if loaded is None else loaded),
        failed=frozenset(failed),
        running=running or {},
        waiting=waiting or {},
        footprints=FOOTPRINTS,
    )


def run(number, tier=Tier.BATCH, since_s=0.0):
    return Run(f"r{number}", tier, since_s)


def holding(free, *, now=0.0, phase=Phase.LOADED, **models):
    """A controller that has loaded these models, which hold so much."""
    held = {name: Held(phase, size, 0, now, now + 600.0) for name, size in models.items()}
    trend = Trend(now, free, sum(models.values()))
    return controller.start(free, now)._replace(models=held, trend=trend)


def of_kind(decisions, kind):
    return [decision for decision in decisions if isinstance(decision, kind)]


def reasons(decisions):
    return {hold.model: hold.reason for hold in of_kind(decisions, Hold)}


# A server that does as it is told, on a node where everything else is chance


@dataclass
class Server:
    """Carries decisions out and holds every step against what must always be true."""

    state: State
    now: float = 0.0
    loading: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    running: dict[str, list[Run]] = field(default_factory=dict)
    waiting: dict[str, list[Run]] = field(default_factory=dict)
    count: int = 0

    def step(self, free, failed=()):
        seen = self.snapshot(free, failed)
        before, (self.state, decisions) = self.state, controller.step(self.state, seen, self.now, LIMITS)
        self.hold_against(seen, before, decisions)
        for decision in decisions:
            match decision:
                case Load(model, _):
                    self.loading.add(model)
                case Unload(model, _, _):
                    self.waiting.setdefault(model, []).extend(self.running.pop(model, []))
                    self.loading.discard(model)
                    self.loaded.discard(model)
                case Admit(id_, model):
                    one = next(run for run in self.waiting[model] if run.id == id_)
                    self.waiting[model].remove(one)
                    self.running.setdefault(model, []).append(one._replace(since_s=self.now))

    def snapshot(self, free, failed=()):
        resident = {model: FOOTPRINTS[model].total_bytes for model in self.loaded}
        return Snapshot(
            TOTAL,
            free,
            resident,
            frozenset(self.loaded),
            frozenset(failed),
            {model: tuple(runs) for model, runs in self.running.items()},
            {model: tuple(runs) for model, runs in self.waiting.items()},
            FOOTPRINTS,
        )

    def hold_against(self, seen, before, decisions):
        loads, unloads, admits = (of_kind(decisions, kind) for kind in (Load, Unload, Admit))
        assert len(of_kind(decisions, NextPoll)) == 1
        assert LIMITS.least_poll_s <= decisions[-1].after_s <= LIMITS.poll_s
        # nothing is unloaded that is not ours, and what is cut is what runs there
        assert all(unload.model in before.models for unload in unloads)
        assert all(
            unload.cut == tuple(r.id for r in seen.running.get(unload.model, ())) for unload in unloads
        )
        # no admission below the floor, nor while unloaded memory is waited for
        if seen.free_bytes < LIMITS.reserve_bytes or (before.back and self.state.back):
            assert not admits
            assert not loads
        # one loader for each model, and only where all loads of this moment fit
        assert all(load.model not in before.models and load.model not in seen.loaded for load in loads)
        if loads:
            to_come = ledger.still_to_come(self.state.models, seen.resident)
            assert seen.free_bytes - to_come >= LIMITS.soft_line(TOTAL)
        # a run starts on a loaded model that has a slot for it
        for model in {admit.model for admit in admits}:
            starting = sum(admit.model == model for admit in admits)
            assert model in seen.loaded
            assert starting + len(seen.running.get(model, ())) <= FOOTPRINTS[model].num_parallel
        # everybody who waits is told why
        told = reasons(decisions)
        for model, runs in seen.waiting.items():
            assert len(runs) == sum(admit.model == model for admit in admits) or model in told
        self.hold_slots_against(seen)

    def hold_slots_against(self, seen):
        for model, footprint in FOOTPRINTS.items():
            slots = controller.free_slots(self.state, seen, model, LIMITS)
            assert 0 <= slots <= footprint.num_parallel
            if seen.free_bytes < LIMITS.reserve_bytes or self.state.back:
                assert slots == 0
            if slots and model not in seen.loaded and model not in self.state.models:
                freed = sum(seen.resident.get(name, 0) for name in self.state.models)
                assert footprint.total_bytes <= seen.free_bytes + freed - LIMITS.reserve_bytes


events = st.one_of(
    st.tuples(st.just("waits"), st.sampled_from(sorted(FOOTPRINTS)), st.sampled_from(Tier)),
    st.tuples(st.just("ends"), st.sampled_from(sorted(FOOTPRINTS)), st.none()),
    st.tuples(st.just("loaded"), st.sampled_from("abc"), st.none()),
    st.tuples(st.just("failed"), st.sampled_from("abc"), st.none()),
    st.tuples(st.just("died"), st.sampled_from("abc"), st.none()),
    st.tuples(st.just("theirs"), st.none(), st.none()),
    st.tuples(st.just("time"), st.none(), st.none()),
)
moments = st.tuples(events, st.floats(0.0, 40.0), st.integers(0, TOTAL))


@settings(max_examples=150, deadline=None)
@given(st.lists(moments, max_size=40), st.integers(16 * GIB, TOTAL))
def test_whatever_a_node_shows_the_rules_hold(history, free):
    server = Server(controller.start(free, 0.0))
    server.step(free)
    for (what, model, tier), passed_s, free_now in history:
        server.now += passed_s
        failed = ()
        match what:
            case "waits":
                server.count += 1
                server.waiting.setdefault(model, []).append(run(server.count, tier, server.now))
            case "ends" if server.running.get(model):
                server.running[model].pop()
            case "loaded" if model in server.loading:
                server.loading.remove(model)
                server.loaded.add(model)
            case "failed" if model in server.loading:
                server.loading.remove(model)
                failed = (model,)
            case "died" if model in server.loaded:
                server.loaded.remove(model)
                server.waiting.setdefault(model, []).extend(server.running.pop(model, []))
            case "theirs":
                server.loaded ^= {"theirs"}
                server.waiting.setdefault("theirs", []).extend(server.running.pop("theirs", []))
        server.step(free_now, failed)


@given(st.integers(0, TOTAL), st.integers(0, TOTAL), st.sampled_from("abc"), st.booleans())
def test_more_free_memory_never_means_fewer_slots(one, other, model, loaded):
    def slots(free):
        size = FOOTPRINTS[model].total_bytes
        state = holding(free, **({model: size} if loaded else {}))
        seen = shows(free, resident={model: size} if loaded else {})
        state, _ = controller.step(state, seen, 1.0, LIMITS)
        return controller.free_slots(state, seen, model, LIMITS)

    assert slots(min(one, other)) <= slots(max(one, other))


def test_there_are_slots_at_all_where_there_is_room():
    seen = shows(TOTAL)
    assert [controller.free_slots(controller.start(TOTAL, 0.0), seen, m, LIMITS) for m in "abc"] == [2, 1, 4]


# Loading


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


# Making room


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


@pytest.mark.parametrize("name", PURE)
def test_the_controller_is_pure(name):
    pure = tuple(f"gaelp_workers.{other}" for other in PURE)
    ours = (*pure, "gaelp_tasks.models")
    plain = {"collections.abc", "enum", "math", "typing"}
    wrong = {
        other
        for other in imports()[f"gaelp_workers.{name}"]
        if not within(other, ours) and other not in plain
    }
    assert not wrong


def test_tiers_rank_as_they_are_listed():
    assert [eviction.RANKS[tier] for tier in Tier] == [tier.rank for tier in Tier]
