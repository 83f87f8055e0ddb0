"""What the memory controller decides, whatever a node shows it."""

from dataclasses import dataclass, field
from math import inf

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
from gaelp_workers.eviction import Run, unused, victims
from gaelp_workers.ledger import Footprint, Held, Phase
from gaelp_workers.thresholds import GIB, Level, Limits, Trend
from gaelp_workers.wording import in_words
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
        loading = {model for model, held in before.models.items() if held.phase is Phase.LOADING}
        assert all(load.model not in loading | seen.resident.keys() | seen.loaded for load in loads)
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
        for hold in of_kind(decisions, Hold):
            assert in_words(hold, seen, self.state, LIMITS).endswith(".")
        for model, runs in seen.waiting.items():
            assert len(runs) == sum(admit.model == model for admit in admits) or model in told
        self.hold_slots_against(seen)

    def hold_slots_against(self, seen):
        capacity = controller.capacity(self.state, seen, LIMITS)
        assert capacity.keys() == FOOTPRINTS.keys()
        for model, footprint in FOOTPRINTS.items():
            slots = controller.free_slots(self.state, seen, model, LIMITS)
            assert 0 <= slots <= footprint.num_parallel
            assert capacity[model] in (0, footprint.num_parallel)
            assert slots == max(0, capacity[model] - len(seen.running.get(model, ())))
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


@given(
    st.integers(0, TOTAL),
    st.integers(0, TOTAL),
    st.sets(st.sampled_from("abc")),
    st.booleans(),
    st.booleans(),
)
def test_more_free_memory_never_means_fewer_slots(one, other, loaded, busy, measured):
    def capacity(free):
        sizes = {model: FOOTPRINTS[model].total_bytes for model in loaded}
        running = {model: (run(1),) for model in loaded} if busy else {}
        state = holding(free, **sizes)
        if measured:
            state = state._replace(measured={"a": 3 * GIB, "b": 9 * GIB})
        seen = shows(free, resident=sizes, running=running)
        state, _ = controller.step(state, seen, 1.0, LIMITS)
        return controller.capacity(state, seen, LIMITS)

    less, more = capacity(min(one, other)), capacity(max(one, other))
    assert all(less[model] <= more[model] for model in FOOTPRINTS)


def test_there_are_slots_at_all_where_there_is_room():
    seen = shows(TOTAL)
    assert [controller.free_slots(controller.start(TOTAL, 0.0), seen, m, LIMITS) for m in "abc"] == [2, 1, 4]


def test_a_model_has_its_slots_where_runs_may_start_on_it_or_wait_for_its_load():
    def capacity(free, *, level=Level.EASY, running=None, loaded=None, **models):
        resident = dict.fromkeys(models, 4 * GIB) | {"theirs": GIB}
        held = {name: Held(phase, 4 * GIB, 0, 0.0, 600.0) for name, phase in models.items()}
        state = controller.start(free, 0.0)._replace(models=held, level=level)
        return controller.capacity(
            state, shows(free, resident=resident, loaded=loaded, running=running), LIMITS
        )

    easy = 24 * GIB
    assert capacity(easy) == {"a": 2, "b": 1, "c": 4, "theirs": 1}
    for phase, slots in (("LOADED", 2), ("LOADING", 2), ("DRAINING", 0), ("UNLOADING", 0)):
        assert capacity(easy, a=Phase[phase])["a"] == slots
    # 8 GiB: b needs 10.5 and the reserve, which is there once a is unloaded
    busy = {"a": (run(1), run(2)), "theirs": (run(3),)}
    assert capacity(8 * GIB, a=Phase.LOADED) == {"a": 2, "b": 0, "c": 0, "theirs": 1}
    assert capacity(11 * GIB, a=Phase.LOADED) == {"a": 2, "b": 1, "c": 0, "theirs": 1}
    assert capacity(11 * GIB, a=Phase.LOADED, running=busy) == {"a": 2, "b": 0, "c": 0, "theirs": 1}
    assert capacity(easy, level=Level.SOFT, a=Phase.LOADED) == {"a": 2, "b": 0, "c": 0, "theirs": 1}
    for level in (Level.HARD, Level.CRITICAL):
        assert not any(capacity(easy, level=level, a=Phase.LOADED).values())


def test_a_model_whose_load_failed_takes_nobody_in_until_it_is_tried_again():
    state = controller.start(TOTAL, 0.0)._replace(rests={"a": 5.0})
    assert controller.capacity(state, shows(TOTAL), LIMITS)["a"] == 0
    assert controller.capacity(state._replace(at_s=5.0), shows(TOTAL), LIMITS)["a"] == 2


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
    plain = {"collections.abc", "enum", "math", "types", "typing"}
    wrong = {
        other
        for other in imports()[f"gaelp_workers.{name}"]
        if not within(other, ours) and other not in plain
    }
    assert not wrong


def test_tiers_rank_as_they_are_listed():
    assert [eviction.RANKS[tier] for tier in Tier] == [tier.rank for tier in Tier]
