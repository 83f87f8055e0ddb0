"""What the memory controller decides, whatever a node shows it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks.models.invocation import Tier
from gaelp_workers import controller, ledger
from gaelp_workers.decisions import Admit, Hold, Load, NextPoll, Snapshot, State, Unload
from gaelp_workers.eviction import Run
from gaelp_workers.ledger import Held, Phase
from gaelp_workers.thresholds import GIB, Level
from gaelp_workers.wording import in_words
from support.imports import imports, within
from support.node_shown import FOOTPRINTS, LIMITS, TOTAL, holding, of_kind, reasons, run, shows

PURE = ("controller", "decisions", "admission", "ledger", "thresholds", "eviction")


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
