"""The soak's plan and judge: every fault is dealt, a planted leak is found, and noise is not."""

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.history.record import Acceptance, History, Start
from faults.history.subjects import acceptance, ends
from faults.soak.check import REDIS, judge
from faults.soak.flat import LIMITS, MIB, Sample, drifts, thirds
from faults.soak.flat import judge as grows
from faults.soak.plan import FAULTS, Plan, strikes
from faults.soak.record import BatchEnd, Soak, Try, accepted
from faults.soak.report import as_json, report

HOUR = 3600.0
EACH_S = 20.0

# --- the plan


def test_two_hours_have_a_fault_every_five_minutes_and_end_without_one():
    dealt = strikes(Plan())
    assert [strike.at_s for strike in dealt] == [300.0 * number for number in range(1, 24)]


@given(st.integers(), st.integers(1, 60))
def test_every_kind_comes_about_equally_often(seed, count):
    dealt = strikes(Plan(seconds=(count + 1) * 10.0, every_s=10.0, seed=seed))
    often = [sum(strike.fault == fault for strike in dealt) for fault in FAULTS]
    assert sum(often) == len(dealt) == count
    assert max(often) - min(often) <= 1


def test_the_seed_decides():
    assert strikes(Plan(seed=1)) == strikes(Plan(seed=1)) != strikes(Plan(seed=2))


def test_a_run_too_short_for_one_has_no_fault():
    assert strikes(Plan(seconds=100.0)) == strikes(Plan(faults=())) == ()


# --- flat or growing


def series(shape, *, figure="memory", seconds=2 * HOUR, process="worker-0", life=7, seed=0, noise=1.0 * MIB):
    """Samples of a life whose figure is `shape(seconds lived)` and noise."""
    rng = Random(seed)
    count = int(seconds / EACH_S)
    return [
        Sample(process, life, figure, 100.0 + n * EACH_S, shape(n * EACH_S) + rng.uniform(-noise, noise))
        for n in range(count)
    ]


def judged(samples):
    """Whether the one life in there grows."""
    [drift] = drifts(samples, warm_s=300.0, least_s=600.0)
    return drift.growing


@given(st.integers(), st.floats(9, 200))
def test_a_leak_is_found(seed, leaked_mib):
    """Of so much from the middle of the first third to the middle of the last."""
    per_s = leaked_mib * MIB / ((2 * HOUR - 300) * 2 / 3)
    assert judged(series(lambda at: 100 * MIB + per_s * at, seed=seed, noise=0.5 * MIB))


@given(st.integers(), st.floats(50, 500))
def test_a_flat_and_noisy_one_is_not(seed, mib):
    assert not judged(series(lambda at: mib * MIB, seed=seed, noise=20 * MIB))


@given(st.integers(), st.floats(300, 2 * HOUR - 300), st.floats(8.5, 30))
def test_a_step_is_not_wherever_it_comes(seed, when, mib):
    assert not judged(series(lambda at: (100 + mib * (at > when)) * MIB, seed=seed))


def test_a_leak_in_steps_is_found():
    """As one connection that each fault costs."""
    faulty = series(lambda at: 30 + at // 300, figure="descriptors", noise=2)
    assert judged(faulty)
    assert not judged(series(lambda at: 30, figure="descriptors", noise=2))


def test_a_cache_that_fills_is_not_a_leak():
    assert not judged(series(lambda at: 100 * MIB + 25 * MIB * min(1.0, at / 1500)))


def test_a_leak_that_begins_late_is_found_once_it_is_large():
    begins = HOUR * 1.3
    late = series(lambda at: 100 * MIB + max(0.0, at - begins) * MIB / 20)
    assert judged(late)
    assert not judged([sample for sample in late if sample.at < begins + 300])


def test_short_peaks_move_nothing():
    assert not judged(series(lambda at: (100 + 500 * (at % 600 < 60)) * MIB))


def test_each_life_is_judged_alone_and_short_ones_are_not():
    """A killed worker's successor is no growth, and nothing is said of one that has just begun."""
    old, new = series(lambda at: 80 * MIB, seconds=HOUR), series(lambda at: 160 * MIB, seconds=HOUR, life=8)
    young = series(lambda at: at * MIB, seconds=600, life=9)
    found = drifts([*young, *new, *old], warm_s=300.0, least_s=600.0)
    assert [(drift.life, drift.growing) for drift in found] == [(7, False), (8, False)]
    assert found[0].lived_s == pytest.approx(HOUR - 300, abs=2 * EACH_S)


def after_a_restart(rest):
    """Whether one grows that was at 230 before it was started again, and fills from 185 to `rest` then."""
    before = series(lambda at: 230, figure="descriptors", noise=2)
    after = series(lambda at: 185 + (rest - 185) * at / (2 * HOUR), figure="descriptors", noise=2, life=3)
    later = [replace(sample, at=sample.at + 3 * HOUR) for sample in after]
    first, second = drifts([*later, *before], warm_s=300.0, least_s=600.0)
    assert (first.life, first.growing, second.life) == (7, False, 3)
    return second.growing


def test_what_was_started_again_may_fill_up_to_where_it_was_but_no_further():
    assert not after_a_restart(rest=235)
    assert after_a_restart(rest=300)


def test_the_warm_up_does_not_count():
    assert not judged(series(lambda at: min(at, 300) * MIB))


def test_what_nobody_judges_is_left_out():
    assert drifts(series(lambda at: at, figure="heap"), warm_s=0.0, least_s=0.0) == []


def test_a_large_process_may_move_by_a_share():
    assert LIMITS["memory"].tolerance(1000 * MIB) == 50 * MIB
    assert LIMITS["memory"].tolerance(10 * MIB) == 8 * MIB


@given(st.lists(st.integers(-99, 99), min_size=12, max_size=50))
def test_thirds_are_in_order_and_leave_nothing_out(values):
    first, middle, last = thirds(sorted(values))
    assert min(values) <= first <= middle <= last <= max(values)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 1e6))
def test_who_falls_never_grows_and_a_wider_tolerance_finds_no_more(first, middle, last, tolerance):
    if last <= first:
        assert not grows(first, middle, last, tolerance)
    if grows(first, middle, last, 2 * tolerance):
        assert grows(first, middle, last, tolerance)


# --- the promises

PLAN = Plan(seconds=2 * HOUR, workers=1)


def good() -> Soak:
    ids = [f"task-{number}" for number in range(2000)]
    tries = [Try("submit", 0.0, 0.01) for _ in ids]
    tries += [Try(kind, 0.0, 0.5) for _ in ids for kind in ("stream", "get")]
    every = [f"{kind}" for kind in ("worker-0", "beat-a", "metrics", "redis", REDIS)]
    samples = [
        sample for name in every for sample in series(lambda at: 50 * MIB, process=name, figure=figure(name))
    ]
    return Soak(
        history=History(
            acknowledged=dict.fromkeys(ids, 0.0),
            starts=tuple(Start(one, f"run {one}", "worker-0", 1.0) for one in ids),
            acceptances=tuple(Acceptance(one, f"answer {one}", 2.0) for one in ids),
        ),
        tries=tries,
        struck=[],
        due={"task-0": 0.0, "task-1": 60.0},
        batches=[BatchEnd("batch", 20, "completed", "")],
        samples=samples,
        database="SQLite",
    )


def figure(name):
    return {REDIS: "used"}.get(name, "memory")


GOOD = good()


def failing(kind, count):
    """So many tries of a kind, which every kind has 2,000 of, have failed."""
    others = [one for one in GOOD.tries if one.kind != kind]
    some = [
        Try(kind, 0.0, 1.0, "BrokerUnavailable: away" if number < count else "") for number in range(2000)
    ]
    return replace(GOOD, tries=[*others, *some])


def without(task_id):
    told = tuple(one for one in GOOD.history.acceptances if one.id != task_id)
    return replace(GOOD, history=replace(GOOD.history, acceptances=told))


def more(*acceptances):
    told = (*GOOD.history.acceptances, *acceptances)
    return replace(GOOD, history=replace(GOOD.history, acceptances=told))


def test_a_good_soak_breaks_nothing_and_is_told():
    verdict = judge(GOOD, PLAN)
    assert (verdict.broken, verdict.unjudged) == ((), ())
    told = report(GOOD, verdict)
    assert "| accepted submits | 100.000% of 2,000 | >= 99.9% |" in told
    assert "| runs of the schedule that came once | 2 of 2 | all |" in told
    assert told.endswith("Every promise was kept.")
    assert as_json(GOOD, PLAN, verdict)["submits"] == {"of": 2000, "failed": 0, "share": 1.0, "why": {}}


@pytest.mark.parametrize(
    ("bad", "sentences"),
    [
        (failing("submit", 2), 0),
        (failing("submit", 3), 1),
        (failing("stream", 4), 0),
        (failing("stream", 5), 1),
        (without("task-5"), 1),  # lost
        (without("task-0"), 2),  # and it was a run of the schedule
        (more(Acceptance("task-5", "another answer", 3.0)), 1),
        (more(Acceptance("nobody's", "answer", 3.0)), 1),
        (more(Acceptance("task-0", "another answer", 3.0)), 2),
        (replace(GOOD, batches=[BatchEnd("batch", 20, "completed", "19 results of 20")]), 1),
        (replace(GOOD, history=replace(GOOD.history, quit=("it ended",))), 1),
        (replace(GOOD, history=replace(GOOD.history, buried=("poison task-9",))), 1),
        (replace(GOOD, samples=[*GOOD.samples, *series(lambda at: at * MIB / 60, life=99)]), 1),
        (replace(GOOD, samples=[one for one in GOOD.samples if one.process != "metrics"]), 1),
        (replace(GOOD, troubles=["beat-kill: no beat leads"]), 1),
    ],
)
def test_each_broken_promise_is_told(bad, sentences):
    verdict = judge(bad, PLAN)
    assert len(verdict.broken) == sentences, verdict.broken
    if sentences:
        assert verdict.broken[-1] in report(bad, verdict)


def test_a_short_soak_says_that_nothing_was_judged():
    short = replace(GOOD, samples=[one for one in GOOD.samples if one.at < 300])
    verdict = judge(short, replace(PLAN, seconds=200.0))
    assert (verdict.broken, len(verdict.unjudged)) == ((), 5)
    assert "Lived too short to be judged: worker, beat, metrics, redis, redis's data." in report(
        short, verdict
    )


def test_a_failure_in_the_words_of_record_and_stream_is_told_once():
    record = {"task_id": "task-1", "status": "FAILURE", "result": {"exc_type": "NodeFailed"}}
    end = {"outcome": "failed", "error": "NodeFailed", "message": "It broke."}
    stream = [("1-0", {"start": "{}"}), ("1-1", {"t": "Half"}), ("1-2", {"end": json.dumps(end)})]
    told = [acceptance(json.dumps(record)), *ends("task-1", stream)]
    assert [one.ok for one in told] == [False, False]
    assert len({one.answer for one in told}) == 1
    well = acceptance(json.dumps(record | {"status": "SUCCESS", "result": {"text": "", "attempts": 1}}))
    assert well.answer != told[0].answer


def test_why_tries_failed_is_counted():
    done = accepted(failing("get", 3).tries, frozenset({"get", "stream"}))
    assert (done.of, done.failed, done.why) == (4000, 3, {"BrokerUnavailable: away": 3})
