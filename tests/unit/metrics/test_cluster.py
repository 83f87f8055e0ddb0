"""Figures of the cluster from what Redis tells: nothing lost, nothing twice, nothing made up."""

from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks import counts
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.metrics import cluster
from gaelp_tasks.metrics.cluster import FRESH_S, KEPT_S, Latest, Seen
from gaelp_tasks.metrics.series import CLUSTER, OTHER, Names
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.capacity import ModelSlots
from gaelp_tasks.survey import Figures, Load
from support.eventually import eventually
from support.fakes import Clock


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
