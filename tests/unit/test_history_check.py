"""The judge of the fault harness: it finds what was planted, and nothing else."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.history.check import COUNTED, Findings, Promise, broken, check, percentile
from faults.history.record import Acceptance, History, Outage, Start, Stop

NOTHING = Promise(restart_p99_s=7.0, stop_s=11.0)  #: the strictest one


def good(tasks: int) -> History:
    """Each task was started once, by one of two workers, and answered once; each answer was heard twice."""
    ids = [f"task-{number}" for number in range(tasks)]
    told = [Acceptance(task_id, f"answer {task_id}", number + 0.5) for number, task_id in enumerate(ids)]
    return History(
        acknowledged={task_id: float(number) for number, task_id in enumerate(ids)},
        starts=tuple(
            Start(task_id, f"run {task_id}", f"worker-{number % 2}", number + 0.1)
            for number, task_id in enumerate(ids)
        ),
        acceptances=(*told, *told),
    )


def found(findings: Findings) -> dict[str, tuple[str, ...]]:
    """What is not empty, of what is counted."""
    return {name: ids for name in COUNTED if (ids := getattr(findings, name))}


def without_answer(history: History, task_id: str) -> History:
    return replace(history, acceptances=tuple(one for one in history.acceptances if one.id != task_id))


histories = st.integers(1, 12).map(good)


@given(history=histories, rng=st.randoms(use_true_random=False))
def test_nothing_is_found_in_a_good_history_in_whatever_order_it_was_written_down(history, rng):
    starts, acceptances = list(history.starts), list(history.acceptances)
    rng.shuffle(starts)
    rng.shuffle(acceptances)
    findings = check(replace(history, starts=tuple(starts), acceptances=tuple(acceptances)))
    assert (found(findings), findings.started_twice, findings.restarts_s) == ({}, (), ())
    assert broken(findings, NOTHING) == []


def plant(name: str, history: History, task_id: str) -> History:  # noqa: C901, PLR0911  one for each fault
    """The history with one fault in it, which befalls `id`."""
    start = next(one for one in history.starts if one.id == task_id)
    told = next(one for one in history.acceptances if one.id == task_id)
    end = 1000.0
    match name:
        case "lost":
            return without_answer(history, task_id)
        case "stranded":
            return replace(without_answer(history, task_id), left=frozenset({task_id}))
        case "failed":
            others = without_answer(history, task_id).acceptances
            return replace(history, acceptances=(*others, replace(told, ok=False)))
        case "accepted_twice":
            second = replace(told, answer="another", at=end)
            return replace(history, acceptances=(*history.acceptances, second))
        case "needless":
            second = replace(start, run="second", worker="other", at=start.at + 0.1)  # before the answer
            return replace(history, starts=(*history.starts, second))
        case "again":
            death = Outage(start.worker, end)
            second = replace(start, run="second", worker="other", at=end + 1)
            return replace(history, starts=(*history.starts, second), outages=(death,))
        case "spent":
            later = tuple(
                replace(one, attempt=2) if one.id == task_id else one for one in history.acceptances
            )
            return replace(history, acceptances=later)
        case "buried":
            return replace(without_answer(history, task_id), buried=(f"poison {task_id}",))
        case "ghosts":
            acknowledged = {one: at for one, at in history.acknowledged.items() if one != task_id}
            return replace(history, acknowledged=acknowledged)
        case "quit":
            return replace(history, quit=(task_id,))
    raise AssertionError(name)


@given(history=histories, data=st.data())
@pytest.mark.parametrize("name", COUNTED)
def test_a_planted_fault_is_found_and_named_and_nothing_else_is(name, history, data):
    task_id = data.draw(st.sampled_from(sorted(history.acknowledged)))
    findings = check(plant(name, history, task_id))
    assert found(findings) == {name: (f"poison {task_id}" if name == "buried" else task_id,)}
    [sentence] = broken(findings, Promise())
    assert sentence.startswith(f"{name}: 1 of ")
    assert task_id in sentence
    assert broken(findings, Promise(**{name: 1})) == []
    assert broken(findings, Promise(**{name: None})) == []


@given(
    planted=st.lists(st.tuples(st.sampled_from(("lost", "accepted_twice")), st.integers(0, 19)), max_size=8)
)
def test_every_one_of_many_planted_faults_is_counted(planted):
    befallen = {number: name for name, number in planted}  # one fault a task
    history = good(20)
    for number, name in befallen.items():
        history = plant(name, history, f"task-{number}")
    expected: dict[str, list[str]] = {}
    for number, name in befallen.items():
        expected.setdefault(name, []).append(f"task-{number}")
    assert found(check(history)) == {name: tuple(sorted(ids)) for name, ids in expected.items()}


@given(late_s=st.floats(0.01, 3600), moment=st.floats(0.01, 0.39))
def test_the_time_to_restart_runs_from_the_death_to_the_next_start(late_s, moment):
    died_at = 0.1 + moment
    history = good(1)
    history = replace(
        history,
        starts=(*history.starts, Start("task-0", "second", "other", died_at + late_s)),
        acceptances=(Acceptance("task-0", "answer", died_at + late_s + 1),),
        outages=(Outage("worker-0", died_at),),
    )
    findings = check(history)
    assert findings.restarts_s == pytest.approx((late_s,))
    assert found(findings) == {}, "a restart after a death is no fault"
    assert findings.started_twice == ("task-0",)
    assert bool(broken(findings, NOTHING)) == (findings.restart_s(99) > 7.0)


@given(rng=st.randoms(use_true_random=False))
def test_the_slowest_of_many_restarts_breaks_the_promise_in_whatever_order_they_were_written_down(rng):
    ids = [f"task-{number}" for number in range(100)]
    starts = [Start(one, f"run {one}", "dead", 1.0) for one in ids]
    starts += [
        Start(one, f"rerun {one}", "alive", 2.0 + number / 10) for number, one in enumerate(ids, start=1)
    ]
    rng.shuffle(starts)
    findings = check(
        History(
            acknowledged=dict.fromkeys(ids, 0.0),
            starts=tuple(starts),
            acceptances=tuple(Acceptance(one, "answer", 20.0) for one in ids),
            outages=(Outage("dead", 2.0),),
        )
    )
    assert (findings.restart_s(50), findings.restart_s(99)) == pytest.approx((5.0, 9.9))
    assert broken(findings, Promise(restart_p99_s=10.0)) == []
    assert broken(findings, Promise(restart_p99_s=9.8)) == ["restart p99: 9.90 s, promised 9.8 s"]


@given(after_s=st.floats(-5, 5))
def test_who_was_frozen_when_the_answer_was_told_may_call_the_model_at_its_thaw_only(after_s):
    history = good(1)
    told = history.acceptances[0]
    second = Start("task-0", "second", "frozen", told.at + 10)
    thawed_at = second.at - after_s
    frozen = Outage("frozen", told.at - 1, thawed_at)
    findings = check(replace(history, starts=(*history.starts, second), outages=(frozen,)))
    at_its_thaw, ran = 0 <= second.at - thawed_at <= 1, ("task-0",)
    assert (findings.thawed, findings.again) == ((ran, ()) if at_its_thaw else ((), ran))


def test_what_was_answered_before_the_death_is_no_orphan_but_ran_again():
    history = good(1)
    repeated = replace(
        history,
        starts=(*history.starts, Start("task-0", "second", "other", 9.0)),
        outages=(Outage("worker-0", 2.0),),
    )
    findings = check(repeated)
    assert (found(findings), findings.restarts_s) == ({"again": ("task-0",)}, ())


def test_a_worker_that_thaws_and_ends_its_own_run_is_no_restart():
    history = good(1)
    thawed = replace(
        history,
        outages=(Outage("worker-0", 0.2, 10.0),),
        acceptances=(Acceptance("task-0", "answer", 10.5),),
    )
    assert check(thawed).restarts_s == ()
    given_back = replace(thawed, starts=(*history.starts, Start("task-0", "second", "other", 10.2)))
    assert check(given_back).restarts_s == (), "it came back, and something else happened to the run"
    overtaken = replace(thawed, starts=(*history.starts, Start("task-0", "second", "other", 5.0)))
    assert check(overtaken).restarts_s == pytest.approx((4.8,))
    zombie = replace(overtaken, acceptances=(Acceptance("task-0", "second", 6.0), *thawed.acceptances))
    assert found(check(zombie)) == {"accepted_twice": ("task-0",)}


def frozen(tasks: int) -> History:
    """All that the first of two workers ran was started again while it was frozen."""
    history = good(tasks)
    over = tuple(
        replace(run, run=f"re{run.run}", worker="other", at=500.0 + number)
        for number, run in enumerate(history.starts)
        if run.worker == "worker-0"
    )
    told = tuple(replace(one, at=900.0) for one in history.acceptances)
    return replace(
        history,
        starts=(*history.starts, *over),
        acceptances=told,
        outages=(Outage("worker-0", 400.0, 800.0),),
        refused=len(over),
    )


@given(history=st.integers(1, 12).map(frozen), fewer=st.integers(1, 3))
def test_every_overtaken_run_must_have_been_refused_and_counted(history, fewer):
    findings = check(history)
    assert len(findings.overtaken) == history.refused
    assert (found(findings), broken(findings, Promise())) == ({}, [])
    counted = check(replace(history, refused=history.refused - fewer))
    overtaken = len(findings.overtaken)
    assert broken(counted, Promise()) == [f"refused: {overtaken - fewer} of {overtaken} overtaken runs"]
    assert broken(check(replace(history, refused=history.refused + fewer)), Promise()) == []
    assert broken(check(replace(history, refused=None)), Promise()) == [], "nothing counts them there"


def test_a_run_whose_worker_died_or_thawed_in_time_was_not_overtaken():
    history = frozen(1)
    dead = replace(history, outages=(Outage("worker-0", 400.0),))
    assert check(dead).overtaken == ()
    in_time = replace(history, outages=(Outage("worker-0", 400.0, 450.0),))
    assert check(in_time).overtaken == ()
    answered = replace(history, acceptances=(Acceptance("task-0", "answer", 399.0),))
    assert check(answered).overtaken == ()


def test_a_frozen_worker_excuses_only_what_it_held_meanwhile():
    history = good(1)
    frozen_later = replace(
        history,
        starts=(*history.starts, Start("task-0", "second", "other", 0.3)),
        outages=(Outage("worker-0", 0.4, 10.0),),
    )
    assert found(check(frozen_later)) == {"needless": ("task-0",)}
    thawed_with_it = replace(frozen_later, outages=(Outage("other", 0.0, 0.25),))
    assert found(check(thawed_with_it)) == {}, "a worker that thaws may begin what it was given before"
    another_one = replace(frozen_later, outages=(Outage("worker-9", 0.2),))
    assert found(check(another_one)) == {"needless": ("task-0",)}
    begun_at_a_thaw = replace(frozen_later, outages=(Outage("worker-0", -9.0, 0.09),))
    assert found(check(begun_at_a_thaw)) == {}, "its lease ended meanwhile"
    long_awake = replace(frozen_later, outages=(Outage("worker-0", -9.0, -0.91),))
    assert found(check(long_awake)) == {"needless": ("task-0",)}


def test_work_that_a_stopping_worker_hands_back_is_no_needless_restart_and_a_late_stop_is_told():
    history = good(1)
    handed_back = replace(
        history,
        starts=(*history.starts, Start("task-0", "second", "other", 0.3)),
        stops=(Stop("worker-0", 0.2, 3.0), Stop("worker-1", 0.2, None)),
    )
    findings = check(handed_back)
    assert (found(findings), findings.restarts_s, findings.stops_s) == ({}, (), (3.0, math.inf))
    assert broken(findings, NOTHING) == ["slowest stop: inf s, promised 11 s"]


def test_a_publish_in_doubt_may_run_or_not():
    ran, did_not = good(2), good(1)
    assert found(check(replace(ran, acknowledged={"task-0": 0.0}, doubtful=frozenset({"task-1"})))) == {}
    assert found(check(replace(did_not, doubtful=frozenset({"task-1"})))) == {}


def test_every_finding_that_is_counted_can_be_promised():
    assert set(COUNTED) <= {field.name for field in fields(Promise)}
    assert set(COUNTED) <= {field.name for field in fields(Findings)}


@given(values=st.lists(st.floats(0, 100), min_size=1), percent=st.floats(0, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values, percent):
    at = percentile(sorted(values), percent)
    assert at in values
    assert sum(value <= at for value in values) >= percent / 100 * len(values) - 1e-9
