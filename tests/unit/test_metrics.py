"""What Prometheus is told: figures from their sources, labels that stay few, a page that never hangs."""

import re
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from celery.app.task import Context
from celery.exceptions import Reject, Retry
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gaelp_tasks import counts, embed, invoke_agent
from gaelp_tasks.demo.broker import free_port
from gaelp_tasks.errors import BrokerUnavailable, NodeFailed
from gaelp_tasks.metrics import cluster, page, worker
from gaelp_tasks.metrics.cluster import FRESH_S, KEPT_S, Latest, Seen
from gaelp_tasks.metrics.page import Collected, Runs, new_page, serve, text
from gaelp_tasks.metrics.series import (
    CLUSTER,
    CONTROL_PLANE,
    HTTP,
    MOST_MODELS,
    OTHER,
    WORKER,
    Names,
    Sample,
)
from gaelp_tasks.metrics.worker import Standing
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.capacity import ModelSlots
from gaelp_tasks.models.ending import Ending
from gaelp_tasks.survey import Figures, Load
from gaelp_workers.metrics import Listening, is_retry
from support.eventually import eventually
from support.fakes import Clock

ROOT = Path(__file__).parents[2]
#: what the contract, section 8, asks for
CONTRACT = {
    "gaelp_queue_depth": ("tier", "model"),
    "gaelp_queue_wait_seconds": ("tier",),
    "gaelp_slots": ("node", "model", "state"),
    "gaelp_memory_bytes": ("node", "kind"),
    "gaelp_invocations_total": ("tier", "agent", "outcome"),
    "gaelp_first_token_seconds": ("tier",),
    "gaelp_tokens_total": ("model", "kind"),
    "gaelp_evictions_total": ("reason",),
    "gaelp_retries_total": (),
    "gaelp_dead_letters": (),
    "gaelp_reaped_total": (),
}
SEED = {"agent_jobs_total", "agent_job_duration_seconds", "agent_resource_usage", "cluster_resource_usage"}
EVERY = (*CLUSTER, *WORKER, *HTTP, *CONTROL_PLANE)
#: all that anything is labelled by; none of them grows with tenants, invocations or prompts
LABELS = (
    *("worker", "version", "node", "tier", "model", "state", "kind", "agent", "outcome", "reason", "status"),
    *("agent_id", "resource", "method", "route"),
)
#: of labels on a page, where they are sorted by name; those of a histogram and of Python come last
ORDER = (*LABELS, "le", "implementation", "major", "minor", "patchlevel")


def node(**facts):
    return NodeSnapshot(
        **{
            "worker": "w@h", "pid": 1, "url": "http://n", "healthy": True, "slots": 4, "started_at": 1.0,
            "seen_at": 2.0, "memory": MemorySnapshot(total_bytes=100, free_bytes=25, source="test"),
        }
        | facts
    )  # fmt: skip


def figures(*nodes, loads=None, **facts):
    given = {"counts": {}, "dead": 0, "parked": 0, "suspects": 0, "held": 0}
    given |= {"beat_leads": True, "beat_terms": 2, "schedules_age_s": 0.5, "history": 3} | facts
    return Figures(loads=loads or {}, nodes=nodes, **given)


def told(found, models=None):
    """The exporter's figures by name and labels; what stands there twice fails."""
    every = list(cluster.samples(Seen(up=True, figures=found, age_s=0.5), models or Names(9)))
    by_place = {(one.name, *one.labels): one.value for one in every}
    assert len(by_place) == len(every)
    return by_place


def parsed(told_there):
    """A page by name and labels, read as Prometheus reads it."""
    return {
        (one.name, *(one.labels[name] for name in sorted(one.labels, key=ORDER.index))): one.value
        for family in text_string_to_metric_families(
            told_there if isinstance(told_there, str) else text(told_there)
        )
        for one in family.samples
    }


# --- names and labels ---


def test_every_metric_of_the_contract_is_told_with_its_labels():
    labels = {series.name: series.labels for series in EVERY}
    assert {name: labels[name] for name in CONTRACT} == CONTRACT
    assert labels.keys() >= SEED


def test_nothing_is_labelled_by_what_has_many_values():
    assert {label for series in EVERY for label in series.labels} == set(LABELS)


def test_a_counter_is_called_so():
    assert all((series.kind == "counter") == series.name.endswith("_total") for series in EVERY)


def test_the_page_of_documentation_lists_every_metric_with_kind_and_labels():
    rows = re.findall(r"(?m)^\| `([a-z_]+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs/metrics.md").read_text())
    listed = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert listed == {(series.name, series.kind, series.labels) for series in EVERY}


@given(st.lists(st.text()), st.integers(0, 5))
def test_names_stay_few_whatever_comes(names, most):
    bounded = Names(most)
    called = [bounded.of(name) for name in names]
    assert len(set(called) - {OTHER}) <= most
    assert called == [bounded.of(name) for name in names], "a name is always called the same"
    assert all(name in {given, OTHER} for given, name in zip(names, called, strict=True))


# --- the cluster ---


def test_schedules_are_told_of_by_what_beat_counts_and_nothing_is_made_up_before():
    page = told(figures(counts={"scheduled": 4, "scheduled_late_ms": 2500}))
    assert page["gaelp_scheduled_runs_total",] == 4
    assert page["gaelp_scheduled_late_seconds_total",] == 2.5
    assert (page["gaelp_schedules_age_seconds",], page["gaelp_history_waiting",]) == (0.5, 3)
    assert ("gaelp_schedules_age_seconds",) not in told(figures(schedules_age_s=None))


def test_the_exporter_has_a_figure_for_every_metric_of_its_page():
    loads = {("batch", "m"): Load(1, 1, 2.0)}
    names = {name for name, *_ in told(figures(node(held_bytes=3), loads=loads))}
    assert names == {series.name for series in CLUSTER}


def test_what_waits_and_runs_is_told_by_tier_and_model():
    found = told(figures(loads={("batch", "m"): Load(3, 2, 9.5), ("interactive", "m"): Load()}))
    assert found["gaelp_queue_depth", "batch", "m"] == 3
    assert found["gaelp_queue_oldest_seconds", "batch", "m"] == 9.5
    assert found["gaelp_running", "batch", "m"] == 2
    assert found["gaelp_queue_depth", "interactive", "m"] == 0


def test_models_beyond_the_bound_are_told_together():
    loads = {("batch", f"m{number}"): Load(1, 1, float(number)) for number in range(5)}
    found = told(figures(loads=loads), Names(2))
    assert found["gaelp_queue_depth", "batch", "m0"] == 1
    assert found["gaelp_queue_depth", "batch", OTHER] == 3
    assert found["gaelp_running", "batch", OTHER] == 3
    assert found["gaelp_queue_oldest_seconds", "batch", OTHER] == 4.0


LOADS = st.dictionaries(
    st.tuples(st.sampled_from(("interactive", "batch")), st.text(max_size=3)),
    st.builds(Load, st.integers(0, 99), st.integers(0, 9), st.floats(0, 1e6)),
    max_size=9,
)


@given(LOADS, st.integers(0, 4))
def test_whatever_the_bound_nothing_is_lost_and_nothing_counted_twice(loads, most):
    found = told(figures(loads=loads), Names(most))
    for tier in ("interactive", "batch"):
        mine = [load for (named, _), load in loads.items() if named == tier]

        def over(name, tier=tier):
            return [value for place, value in found.items() if place[:2] == (name, tier)]

        assert sum(over("gaelp_queue_depth")) == sum(load.queued for load in mine)
        assert sum(over("gaelp_running")) == sum(load.running for load in mine)
        longest_s = max((load.oldest_s for load in mine), default=0.0)
        assert max(over("gaelp_queue_oldest_seconds"), default=0.0) == longest_s
        assert len(over("gaelp_queue_depth")) <= most + 1


def test_slots_of_a_model_in_memory_are_busy_or_free_and_others_would_be_there_once_loaded():
    models = (
        ModelSlots(model="a", slots=3, busy=1, phase="loaded"),
        ModelSlots(model="b", slots=2, busy=1),
        ModelSlots(model="c", slots=1, busy=4, phase="loading"),
    )
    found = told(figures(node(by_model=models)))
    states = {
        (model, state): found["gaelp_slots", "http://n", model, state]
        for model in "abc"
        for state in ("busy", "free", "unloaded")
    }
    assert states == {
        ("a", "busy"): 1, ("a", "free"): 2, ("a", "unloaded"): 0,
        ("b", "busy"): 1, ("b", "free"): 0, ("b", "unloaded"): 1,
        ("c", "busy"): 4, ("c", "free"): 0, ("c", "unloaded"): 0,
    }  # fmt: skip


def test_a_node_that_tells_of_no_model_tells_its_slots_as_a_whole():
    found = told(figures(node(slots=4, running=("x", "y"), tokens=(0, 0), embedding=("y",))))
    assert found["gaelp_slots", "http://n", "any", "busy"] == 1
    assert found["gaelp_slots", "http://n", "any", "free"] == 3


def test_of_one_node_with_two_workers_slots_add_up_and_the_worst_of_the_rest_counts():
    low = MemorySnapshot(total_bytes=100, free_bytes=10, source="test")
    pair = node(), node(worker="v@h", healthy=False, memory=low, closed="cordoned", held_bytes=7)
    found = told(figures(*pair))
    assert found["gaelp_slots", "http://n", "any", "free"] == 8
    assert found["gaelp_memory_bytes", "http://n", "free"] == 10
    assert found["gaelp_memory_bytes", "http://n", "held"] == 7
    assert (found["gaelp_node_healthy", "http://n"], found["gaelp_node_open", "http://n"]) == (0, 1)


def test_memory_that_nobody_can_see_is_not_told_as_none():
    unknown = MemorySnapshot(total_bytes=0, free_bytes=0, source="unknown")
    found = told(figures(node(memory=unknown)))
    assert not [place for place in found if place[0] == "gaelp_memory_bytes"]
    assert ("cluster_resource_usage", "memory") not in found


def test_what_is_closed_has_no_share_in_the_use_of_slots():
    busy = node(running=("a", "b", "e"), tokens=(0, 0, 0), embedding=("e",), slots=2)
    found = told(figures(busy, node(url="http://m", closed="cordoned", slots=6)))
    assert found["cluster_resource_usage", "slots"] == 1.0
    assert found["cluster_resource_usage", "memory"] == pytest.approx(0.75)


def test_what_rarely_happens_is_told_from_its_first_time_on():
    found = told(figures())
    for place in (("evictions", "memory"), ("evictions", "preemption"), ("reaped",), ("fenced",)):
        assert found[f"gaelp_{place[0]}_total", *place[1:]] == 0
    found = told(
        figures(counts={counts.EVICTED: 2, counts.PREEMPTED: 3, counts.REAPED: 4, counts.FENCED: 5}, dead=6)
    )
    assert found["gaelp_evictions_total", "memory"] == 2
    assert found["gaelp_evictions_total", "preemption"] == 3
    assert (found["gaelp_reaped_total",], found["gaelp_fenced_total",]) == (4, 5)
    assert found["gaelp_dead_letters",] == 6


# --- looking ---


class Redis:
    """Answers, or not."""

    def __init__(self):
        self.looks = 0
        self.away = False

    def take(self):
        self.looks += 1
        if self.away:
            raise BrokerUnavailable("Redis is away.")
        return figures(dead=self.looks)


def test_one_look_serves_all_who_ask_within_a_second():
    redis, clock = Redis(), Clock(0.0)
    latest = Latest(redis.take, tick=clock)
    assert [latest().figures.dead for _ in range(3)] == [1, 1, 1]
    clock.advance(FRESH_S)
    assert latest() == Seen(up=True, figures=figures(dead=2), age_s=0.0)


def test_while_redis_is_away_the_last_figures_stand_for_a_while():
    redis, clock = Redis(), Clock(0.0)
    latest = Latest(redis.take, tick=clock)
    latest()
    redis.away = True
    clock.advance(KEPT_S)
    assert latest() == Seen(up=False, figures=figures(dead=1), age_s=KEPT_S)
    clock.advance(FRESH_S)
    assert latest() == Seen(up=False, figures=None, age_s=0.0)
    redis.away = False
    clock.advance(FRESH_S)
    assert latest().up


def test_a_redis_that_hangs_delays_a_scrape_by_no_more_than_its_wait_and_is_asked_once():
    goes_on, looks = Event(), []

    def hang():
        looks.append(1)
        goes_on.wait(20)
        return figures()

    latest = Latest(hang, wait_s=0.05)
    try:
        assert [latest() for _ in range(3)] == [Seen(up=False, figures=None, age_s=0.0)] * 3
        assert looks == [1]
    finally:
        goes_on.set()
    assert eventually(lambda: latest().up)


# --- a worker ---

RESULT = {
    "id": "i", "agent": "coding", "model": "m", "tier": "batch", "stop_reason": "stop",
    "usage": {"prompt_tokens": 7, "completion_tokens": 11},
    "timings": {"queued_s": 0.5, "load_s": None, "first_token_s": 0.25, "total_s": 2.0},
}  # fmt: skip


def end(**facts):
    return Ending(**{"id": "i", "task": "t", "state": "done", "tier": "batch", "agent": "chat"} | facts)


DONE = {
    "model": "m", "prompt_tokens": 7, "completion_tokens": 11, "queued_s": 0.5, "first_token_s": 0.25,
    "total_s": 2.0,
}  # fmt: skip


def test_only_what_spends_an_attempt_is_a_retry():
    def again(retries):
        return Retry(exc=NodeFailed("It broke."), when=1.0, sig=SimpleNamespace(options={"retries": retries}))

    assert is_retry(again(3), 2)
    assert not is_retry(again(2), 2)
    assert not is_retry(Reject("stopped: preemption"), 0)


def test_ends_are_counted_by_tier_agent_and_outcome_with_their_times_and_tokens():
    page = new_page()
    runs = Runs(lambda: ("chat", "embed"), page)
    before = parsed(page)
    assert before["gaelp_invocations_total", "batch", "chat", "done"] == 0, "a rate needs the first 0"
    for outcome in ("done", "done", "failed"):
        runs.ended(end(state=outcome, **DONE))
    runs.ended(end(agent="", state="cut"))
    runs.retried()
    found = parsed(page)
    assert found["gaelp_invocations_total", "batch", "chat", "done"] == 2
    assert found["gaelp_invocations_total", "batch", "chat", "failed"] == 1
    assert found["gaelp_invocations_total", "batch", "embed", "cut"] == 1
    assert (found["gaelp_tokens_total", "m", "prompt"], found["gaelp_tokens_total", "m", "completion"]) == (
        21,
        33,
    )
    assert found["gaelp_retries_total",] == 1
    for name, seconds in (("queue_wait", 0.5), ("first_token", 0.25), ("run", 2.0)):
        assert found[f"gaelp_{name}_seconds_count", "batch"] == 3
        assert found[f"gaelp_{name}_seconds_sum", "batch"] == pytest.approx(3 * seconds)


def test_an_agent_that_nobody_can_call_and_models_beyond_the_bound_are_other():
    page = new_page()
    runs = Runs(lambda: ("chat",), page)
    for number in range(MOST_MODELS + 3):
        runs.ended(end(agent=f"made up {number}", state="failed", model=f"m{number}", prompt_tokens=1))
    found = parsed(page)
    assert found["gaelp_invocations_total", "batch", OTHER, "failed"] == MOST_MODELS + 3
    assert found["gaelp_tokens_total", OTHER, "prompt"] == 3
    assert len({place[1] for place in found if place[0] == "gaelp_tokens_total"}) == MOST_MODELS + 1


class Counted:
    """What a worker counts."""

    def __init__(self):
        self.ends = []
        self.retries = 0

    def ended(self, end):
        self.ends.append(end)

    def retried(self):
        self.retries += 1


def told_to(listening, task, state, retval, **request):
    """As Celery tells that a run has ended, on its thread."""
    task.push_request(**({"id": "i", "retries": 0, "delivery_info": {"routing_key": "batch"}} | request))
    try:
        listening.on_end(sender=task, state=state, retval=retval)
    finally:
        task.pop_request()


def test_it_hears_of_every_end_once_and_of_no_other_task():
    counted = Counted()
    listening = Listening(counted)
    told_to(listening, invoke_agent, "SUCCESS", RESULT)
    told_to(listening, embed, "FAILURE", NodeFailed("It broke."))
    told_to(listening, invoke_agent, "SUCCESS", RESULT, gaelp_asked_again=True)
    told_to(listening, invoke_agent, "REJECTED", Reject("stopped: preemption"))
    told_to(listening, invoke_agent, "RETRY", Retry(when=1.0, sig=SimpleNamespace(options={"retries": 1})))
    listening.on_end(sender=object(), state="SUCCESS", retval=None)
    assert [(end.agent, end.tier, end.state) for end in counted.ends] == [
        ("coding", "batch", "done"),
        ("", "batch", "failed"),
    ]
    assert counted.retries == 1


def test_what_expired_unread_was_cut_and_what_was_revoked_ends_elsewhere():
    counted = Counted()
    listening = Listening(counted)
    request = Context(id="i", kwargs={"agent": "coding"}, delivery_info={"routing_key": "interactive.m"})
    for expired in (True, False):
        listening.on_revoked(sender=invoke_agent, request=request, expired=expired)
    assert [(end.agent, end.tier, end.state) for end in counted.ends] == [("coding", "interactive", "cut")]


def test_how_a_worker_stands_is_told_on_its_page():
    page = new_page()
    now = Standing("w@h", "0.1", 2, True, False, 1.5, 2.5, {"http://n": 64})
    gauges = [series for series in WORKER if series.kind == "gauge"]
    Collected(gauges, lambda: worker.samples(now), page)
    found = parsed(page)
    assert {place: value for place, value in found.items() if place[0].startswith("gaelp_")} == {
        ("gaelp_worker_info", "w@h", "0.1"): 1,
        ("gaelp_worker_runs",): 2,
        ("gaelp_worker_open",): 1,
        ("gaelp_claims_wanted",): 0,
        ("gaelp_claim_age_seconds",): 1.5,
        ("gaelp_progress_age_seconds",): 2.5,
        ("gaelp_memory_bytes", "http://n", "reserve"): 64,
    }
    assert ("process_resident_memory_bytes",) in found


# --- the page ---


@pytest.fixture
def served():
    page = new_page()
    Collected(CLUSTER, lambda: [Sample("gaelp_dead_letters", (), 5)], page)
    port = free_port()
    end = serve(page, "127.0.0.1", port)
    yield port
    end()


def test_a_page_is_served_also_while_another_client_says_nothing(served):
    address = f"http://127.0.0.1:{served}/metrics"
    with socket.create_connection(("127.0.0.1", served)), urlopen(address, timeout=10) as answer:
        found = parsed(answer.read().decode())
    assert found["gaelp_dead_letters",] == 5


def test_who_says_nothing_is_sent_away(served, monkeypatch):
    monkeypatch.setattr(page._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", served), timeout=10) as silent:
        assert silent.recv(1) == b""


def test_metrics_without_a_figure_are_named_all_the_same(served):
    with urlopen(f"http://127.0.0.1:{served}/metrics", timeout=10) as answer:
        told_kinds = dict(re.findall(r"(?m)^# TYPE (\w+) (\w+)$", answer.read().decode()))
    assert {name: told_kinds[name] for name in ("gaelp_slots", "gaelp_reaped_total")} == {
        "gaelp_slots": "gauge",
        "gaelp_reaped_total": "counter",
    }


def test_only_who_has_a_page_imports_the_library():
    code = "import sys, gaelp_tasks, gaelp_workers.app; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_port_in_use_is_refused(served):
    with pytest.raises(OSError, match="in use"):
        serve(new_page(), "127.0.0.1", served)
