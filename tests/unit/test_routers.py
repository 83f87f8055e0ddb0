"""Which node takes a call: what no router may do, what each prefers, and what is remembered."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks.clients import DistributedOllamaClient, LocalOllamaClient, client_from_settings, routers
from gaelp_tasks.clients.routers import (
    Ask,
    LeastLoadedRouter,
    NodeRouter,
    NodeState,
    NodeTable,
    Outcome,
    allowed,
    router_named,
)
from gaelp_tasks.clients.routers.least_loaded import least_loaded
from gaelp_tasks.clients.routers.table import BUSY_S, FRESH_S, MAX_BUSY_S
from gaelp_tasks.clients.watch import PROBE_BASE_S, PROBE_CAP_S, wait_before_probe_s
from gaelp_tasks.clients.way import outcome_of, the_error
from gaelp_tasks.errors import (
    ModelMissing,
    NodeBusy,
    NodeFailed,
    NodeUnreachable,
    RequestRefused,
    SettingsError,
    StreamStalled,
)
from gaelp_tasks.settings import Settings

MODEL = "m:latest"
A, B, C = URLS = ("http://a:1", "http://b:1", "http://c:1")
unhurried = settings(deadline=None)  # a busy machine is no failure

MODELS = st.frozensets(st.sampled_from([MODEL, "other:1b"]))
STATES = st.lists(
    st.builds(
        NodeState,
        url=st.sampled_from([f"http://n{number}" for number in range(6)]),
        slots=st.integers(0, 4),
        in_flight=st.integers(0, 6),
        failed=st.frozensets(st.sampled_from(["", MODEL, "other:1b"])),
        busy=st.booleans(),
        models=st.none() | MODELS,
        loaded=MODELS,
        latency_s=st.dictionaries(st.just(MODEL), st.floats(0, 1e6)),
        success_rate=st.floats(0, 1),
        turn=st.integers(0, 9),
    ),
    max_size=6,
    unique_by=lambda node: node.url,
)
ASKS = st.builds(
    Ask,
    model=st.sampled_from([MODEL, ""]),
    exclude=st.frozensets(st.sampled_from([f"http://n{number}" for number in range(6)])),
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def router(clock):
    return LeastLoadedRouter(URLS, slots=2, clock=clock)


def state_of(router, url):
    return next(node for node in router.snapshot() if node.url == url)


def call(router, outcome=Outcome.DONE, *, exclude=(), **told):
    """One call from beginning to end; the node that took it."""
    lease = router.acquire("m", exclude=frozenset(exclude))
    lease.report(outcome, **told)
    return lease.node


def others(url):
    return frozenset(URLS) - {url}


# --- who may be chosen at all -----------------------------------------------------------------------


@unhurried
@given(STATES, ASKS)
def test_no_excluded_node_is_allowed_and_none_only_where_nothing_is_left(nodes, ask):
    found = allowed(nodes, ask)
    assert not {node.url for node in found} & ask.exclude
    left = [node for node in nodes if node.url not in ask.exclude]
    if ask.exclude:
        left = [node for node in left if not node.lacks(ask.model)]
    assert bool(found) == bool(left)


@unhurried
@given(STATES, ASKS)
def test_what_is_allowed_is_the_best_class_and_all_of_it(nodes, ask):
    def rank(node):
        full = node.in_flight >= node.slots
        return node.lacks(ask.model), not node.healthy(ask.model), node.busy, full

    left = [node for node in nodes if node.url not in ask.exclude]
    if ask.exclude:
        left = [node for node in left if not node.lacks(ask.model)]
    best = min(map(rank, left), default=None)
    assert allowed(nodes, ask) == [node for node in left if rank(node) == best]


@unhurried
@given(STATES.filter(bool), ASKS)
def test_the_least_loaded_is_one_of_those_given_whatever_their_order(nodes, ask):
    chosen = least_loaded(nodes, ask)
    assert chosen in nodes
    unique_turns = [node for turn, node in {node.turn: node for node in nodes}.items()]
    assert least_loaded(unique_turns, ask) == least_loaded(unique_turns[::-1], ask)


@unhurried
@given(STATES.filter(bool), ASKS)
def test_the_least_loaded_is_never_the_one_with_more_to_do_for_the_model(nodes, ask):
    chosen = least_loaded(nodes, ask)
    for node in nodes:
        if node.loaded == chosen.loaded and node.slots == chosen.slots:
            assert chosen.in_flight <= node.in_flight


# --- what the default router prefers -----------------------------------------------------------------


def test_equal_nodes_take_calls_in_turn(router):
    for url in URLS:
        router.saw(url, models=["m"], loaded=["m"])
    assert Counter(call(router, first_token_s=0.1) for _ in range(300)) == dict.fromkeys(URLS, 100)


@unhurried
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_calls_at_once_are_spread_evenly(calls, nodes, slots):
    router = LeastLoadedRouter([f"http://n{number}" for number in range(nodes)], slots=slots)
    for _ in range(calls):
        router.acquire("m")
    loads = [node.in_flight for node in router.snapshot()]
    assert sum(loads) == calls
    assert max(loads) - min(loads) <= 1


def test_slots_of_one_node_may_differ_from_those_of_another(clock):
    router = LeastLoadedRouter({A: 4, B + "/": 2, C: 1}, clock=clock)
    taken = Counter(router.acquire("m").node for _ in range(14))
    assert taken == {A: 8, B: 4, C: 2}
    router.set_nodes({A: 1, C: 0})
    assert [(node.url, node.slots) for node in router.snapshot()] == [(A, 1), (C, 0)]
    assert router.acquire("m").node in {A, C}


def test_a_node_without_a_slot_is_used_last(clock):
    router = LeastLoadedRouter({A: 0, B: 1}, clock=clock)
    assert [router.acquire("m").node for _ in range(2)] == [B, A]


def test_a_node_with_the_model_in_memory_goes_first_while_it_has_room(router):
    router.saw(B, models=["m"], loaded=["m"])
    taken = [router.acquire("m").node for _ in range(3)]
    assert taken[:2] == [B, B]
    assert taken[2] != B


def test_a_node_twice_as_slow_waits_until_the_quick_one_is_full(router):
    for url, first_token_s in ((A, 0.8), (B, 0.1), (C, 0.9)):
        assert call(router, exclude=others(url), first_token_s=first_token_s) == url
    assert [call(router, first_token_s=0.1) for _ in range(5)] == [B] * 5


def test_a_node_that_was_slow_a_while_ago_is_tried_again(router, clock):
    for url, first_token_s in ((A, 0.1), (B, 5.0), (C, 0.1)):
        call(router, exclude=others(url), first_token_s=first_token_s)
    assert B not in {call(router, first_token_s=0.1) for _ in range(6)}
    clock.now += FRESH_S + 1
    assert B in {call(router, first_token_s=0.1) for _ in range(3)}


# --- health -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNREACHABLE])
def test_a_failed_node_takes_no_call_until_it_is_marked_healthy(router, clock, outcome):
    for url in URLS:
        router.saw(url, models=["m"], loaded=["m"])
    call(router, outcome, exclude=others(A))
    clock.now += 1e6  # time alone heals nothing
    assert A not in {call(router) for _ in range(20)}
    router.mark(A, "", healthy=True)
    assert A not in {call(router) for _ in range(20)}  # the model that failed has to answer itself
    assert state_of(router, A).success_rate < 1
    router.mark(A, "m", healthy=True)
    assert state_of(router, A).success_rate == 1  # else a router that looks at it would never try it again
    assert A in {call(router) for _ in range(3)}


def test_where_all_have_failed_one_is_asked_all_the_same(router):
    for url in URLS:
        router.mark(url, "", healthy=False)
    assert call(router) in URLS
    assert all(not node.failed for node in router.snapshot() if node.turn)  # and its answer heals it


def test_a_model_that_failed_leaves_the_other_models_of_its_node_in_use(router):
    call(router, Outcome.FAILED, exclude=others(A))
    assert not state_of(router, A).healthy(MODEL)
    assert state_of(router, A).healthy("other:latest")


def test_an_answer_to_a_look_heals_the_node_but_no_model_of_it(router):
    router.mark(A, "", healthy=False)
    router.mark(A, "m", healthy=False)
    router.saw(A, models=["m"], loaded=[])
    assert state_of(router, A).failed == {MODEL}


@pytest.mark.parametrize("outcome", [Outcome.LEFT, Outcome.REFUSED, Outcome.MISSING, Outcome.BUSY])
def test_what_is_not_the_nodes_failure_leaves_it_healthy(router, outcome):
    call(router, outcome, exclude=others(A))
    state = state_of(router, A)
    assert (state.healthy(MODEL), state.success_rate, state.in_flight) == (True, 1.0, 0)


@pytest.mark.parametrize(("asked_s", "waits_s"), [(None, BUSY_S), (20.0, 20.0), (1e9, MAX_BUSY_S)])
def test_a_busy_node_is_passed_over_for_as_long_as_it_asked(router, clock, asked_s, waits_s):
    call(router, Outcome.BUSY, exclude=others(A), retry_after_s=asked_s)
    clock.now += waits_s - 0.01
    assert state_of(router, A).busy
    clock.now += 0.02
    assert not state_of(router, A).busy


def test_a_node_known_to_lack_the_model_is_only_asked_where_no_other_is(router):
    for url in (A, B):
        router.saw(url, models=["other:1b"], loaded=[])
    assert {call(router) for _ in range(6)} == {C}
    assert router.acquire("m", exclude=frozenset({C})) is None
    router.saw(C, models=[], loaded=[])
    assert call(router) in URLS  # it may have been pulled meanwhile; the node itself knows


def test_a_model_that_was_found_missing_is_looked_for_elsewhere(router):
    router.saw(A, models=["m"], loaded=[])
    call(router, Outcome.MISSING, exclude=others(A))
    assert A not in {call(router) for _ in range(9)}


# --- bookkeeping ------------------------------------------------------------------------------------


def test_only_the_first_report_of_a_lease_counts(router):
    lease = router.acquire("m")
    lease.report(Outcome.DONE)
    lease.report(Outcome.UNREACHABLE)
    assert [node.in_flight for node in router.snapshot()] == [0, 0, 0]
    assert all(node.healthy(MODEL) for node in router.snapshot())


@unhurried
@given(st.lists(st.tuples(st.sampled_from(["acquire", *Outcome]), st.integers(0, 9)), max_size=60))
def test_calls_in_flight_are_always_those_given_out_and_not_reported(steps):
    router = LeastLoadedRouter(URLS, slots=2)
    held = []
    for step, number in steps:
        if step == "acquire":
            held.append(router.acquire("m"))
        elif held:
            held.pop(number % len(held)).report(step, first_token_s=0.1)
        counted = Counter(lease.node for lease in held)
        assert {node.url: node.in_flight for node in router.snapshot()} == {url: counted[url] for url in URLS}
        assert all(0 <= node.success_rate <= 1 for node in router.snapshot())


def test_changing_the_nodes_keeps_what_is_known_of_those_that_stay(router):
    call(router, Outcome.UNREACHABLE, exclude=others(A))
    lease = router.acquire("m", exclude=others(B))
    router.set_nodes([C, A])
    lease.report(Outcome.FAILED)  # on a node that has been removed
    assert router.nodes() == (C, A)
    assert not state_of(router, A).healthy(MODEL)
    router.add(B + "/")
    assert state_of(router, B).healthy(MODEL)
    router.remove(A)
    assert router.nodes() == (C, B)


def test_news_of_a_node_that_was_removed_is_no_news(router):
    router.remove(A)
    router.saw(A, models=[], loaded=[])
    router.mark(A, "", healthy=False)
    assert router.nodes() == (B, C)


@pytest.mark.parametrize("pool", [[], (), iter(())])
def test_no_node_is_refused_because_none_is_looked_for(pool):
    with pytest.raises(SettingsError, match="none is looked for"):
        LeastLoadedRouter(pool)


def test_what_is_no_address_changes_nothing(router):
    with pytest.raises(SettingsError, match="'host:11434' is no address of an Ollama server"):
        router.add("http:/user:pw@host:11434")
    assert router.nodes() == URLS


def test_the_last_node_cannot_be_removed(router):
    router.set_nodes([A])
    with pytest.raises(SettingsError):
        router.remove(A)
    assert router.nodes() == (A,)


def test_a_router_of_taste_alone_is_a_few_lines():
    last = NodeTable(URLS, lambda nodes, ask: nodes[-1])
    assert isinstance(last, NodeRouter)
    assert call(last) == C


# --- probes and errors ------------------------------------------------------------------------------


def test_probes_come_twice_as_late_each_time_up_to_a_limit():
    waits = [wait_before_probe_s(tries) for tries in (*range(20), 10**6)]
    assert waits[0] == PROBE_BASE_S
    assert all(later in {2 * wait, PROBE_CAP_S} for wait, later in itertools.pairwise(waits))
    assert waits[-1] == PROBE_CAP_S < math.inf


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NodeUnreachable("x"), Outcome.UNREACHABLE),
        (NodeBusy("x"), Outcome.BUSY),
        (ModelMissing("x"), Outcome.MISSING),
        (RequestRefused("x"), Outcome.REFUSED),
        (NodeFailed("x"), Outcome.FAILED),
        (StreamStalled("x"), Outcome.FAILED),
    ],
)
def test_each_error_says_one_thing_about_its_node(error, outcome):
    assert outcome_of(error) is outcome


def test_the_most_hopeful_error_comes_out():
    missing, dead, failed = ModelMissing("no"), NodeUnreachable("gone"), NodeFailed("broken")
    soon, late, some_time = NodeBusy("b", retry_after_s=1), NodeBusy("b", retry_after_s=9), NodeBusy("b")
    assert the_error([missing, late, dead, soon, some_time], "m", 5) is soon
    assert the_error([missing, some_time, dead], "m", 3) is some_time
    assert the_error([missing, failed, dead], "m", 3) is failed
    assert the_error([missing], "m", 1) is missing
    assert "None of the 2 nodes has the model 'm'" in str(the_error([missing, missing], "m", 2))


# --- from the settings ------------------------------------------------------------------------------


def test_one_node_is_local_and_several_are_distributed():
    assert isinstance(client_from_settings(Settings()), LocalOllamaClient)
    several = Settings(ollama_nodes="http://a:1, http://b:1/", num_parallel=3, default_model="m")
    client = client_from_settings(several)
    assert isinstance(client, DistributedOllamaClient)
    assert (client.router.nodes(), client.model_name) == (("http://a:1", "http://b:1"), "m")
    assert {node.slots for node in client.router.snapshot()} == {3}
    assert isinstance(client.router, LeastLoadedRouter)


def test_sollol_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(routers, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"install gaelp-tasks\[sollol\]"):
        client_from_settings(Settings(ollama_nodes="http://a,http://b", node_router="sollol"))
    with pytest.raises(SettingsError, match=r"gaelp-tasks\[sollol\]"):
        router_named("sollol", URLS)
    with pytest.raises(ImportError, match=r"gaelp-tasks\[sollol\]"):
        _ = routers.SollolRouter


@pytest.mark.parametrize("pool", [5, None, [5], object()])
def test_what_is_no_pool_is_said_at_once(pool):
    with pytest.raises(SettingsError, match="A pool is a router or a list of node URLs"):
        DistributedOllamaClient("m", pool)


@pytest.mark.parametrize("address", ["localhost:11434", "ftp://host", ""])
def test_an_address_that_cannot_be_used_is_said_at_once(address):
    with pytest.raises(SettingsError, match="no address of an Ollama server"):
        DistributedOllamaClient("m", ["http://good:1", address])
