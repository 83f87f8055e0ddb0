"""What the fault harness reads: result records, streams, queues, the journal."""

import json

import pytest

from faults.history.faults import FAULTS, Freeze, Partition, lasting
from faults.history.journal import Journal, Reader
from faults.history.run import asked_for, reason
from faults.history.subjects import acceptance, ends


def record(status: str, result: object) -> str:
    return json.dumps({"status": status, "result": result, "task_id": "a", "date_done": "any"})


def test_a_record_is_an_acceptance_once_it_is_final():
    assert acceptance(record("STARTED", {"pid": 1})) is None
    assert acceptance(record("RETRY", None)) is None
    assert acceptance(record("SUCCESS", "run 1")).ok
    assert not acceptance(record("FAILURE", {"exc_type": "X"})).ok


def test_answers_of_two_runs_differ_and_those_of_one_do_not():
    first, second = (acceptance(record("SUCCESS", run)).answer for run in ("run 1", "run 2"))
    assert first == acceptance(record("SUCCESS", "run 1")).answer != second


def test_an_invocations_answer_is_its_text_in_the_record_and_in_the_stream():
    told = acceptance(record("SUCCESS", {"text": "run 1 on on", "attempts": 2}))
    entries = [
        ("1-0", {"start": "{}"}),
        ("1-1", {"t": "run 0 cut off"}),
        ("2-0", {"start": "{}"}),
        ("2-1", {"t": "run 1"}),
        ("2-2", {"t": " on on"}),
        ("2-3", {"end": '{"outcome": "done"}'}),
    ]
    [end] = ends("a", entries)
    assert (end.id, end.answer, end.ok) == (told.id, told.answer, True)
    assert told.attempt == 2


def test_the_answer_of_a_run_that_went_on_begins_where_its_text_does():
    """A claim that finds an earlier end tells it again, and writes no text where its readers have that."""
    entries = [
        ("1-0", {"start": "{}"}),
        ("1-1", {"t": "run 0 cut off"}),
        ("2-0", {"start": "{}"}),
        ("2-1", {"t": "run 1"}),
        ("2-2", {"end": '{"outcome": "done"}'}),
        ("3-0", {"start": '{"resumes": true, "from": 2}'}),
        ("3-1", {"end": '{"outcome": "done"}'}),
    ]
    told = acceptance(record("SUCCESS", {"text": "run 1", "attempts": 1}))
    assert [end.answer for end in ends("a", entries)] == [told.answer, told.answer]


def test_two_end_marks_are_two_acceptances():
    entries = [
        (f"{claim}-{n}", entry)
        for claim in (1, 2)
        for n, entry in enumerate(({"t": f"run {claim}"}, {"end": '{"outcome": "done"}'}), start=1)
    ]
    assert len({end.answer for end in ends("a", entries)}) == 2


@pytest.mark.parametrize("held", [lambda message: message, lambda message: [message, "celery", "celery"]])
def test_a_message_is_known_in_its_queue_and_in_what_a_worker_holds(held):
    assert asked_for(json.dumps(held({"headers": {"id": "a"}, "body": "x"}))) == "a"


@pytest.mark.parametrize("junk", ["", "not JSON", "null", "[]", "7", "{}"])
def test_junk_in_a_queue_asks_for_no_task(junk):
    assert asked_for(junk) is None


def test_the_journal_is_read_as_it_grows_and_a_torn_line_waits_for_its_end(tmp_path):
    path = tmp_path / "journal"
    reader = Reader(path)
    writer, other = Journal(path), Journal(path)
    writer.started("a", "run 1", "worker-0")
    other.started("b", "run 2", "worker-1")
    assert [(start.id, start.run, start.worker) for start in reader.news()] == [
        ("a", "run 1", "worker-0"),
        ("b", "run 2", "worker-1"),
    ]
    with path.open("a") as torn:
        torn.write('["c", "run 3", ')
        torn.flush()
        assert reader.news() == []
        torn.write('"worker-0", 1.0]\n')
    assert [start.id for start in reader.news()] == ["c"]
    for end in (reader, writer, other):
        end.close()


def test_every_fault_can_be_asked_for_by_its_name():
    assert {name: fault.name for name, fault in FAULTS.items()} == {name: name for name in FAULTS}
    assert len(FAULTS) == 8


def test_a_fault_lasts_as_long_as_it_is_told_to_where_it_has_a_length():
    assert lasting(FAULTS["freeze"], 20.0, 6.0) == Freeze(6.0, 20.0)
    assert lasting(FAULTS["freeze"], 7.0) == Freeze(7.0, 7.0)
    assert lasting(FAULTS["partition"], 30.0) == Partition(30.0)
    for name in ("kill", "host", "term", "cut"):
        assert lasting(FAULTS[name], 3.0) == FAULTS[name]
    for fault in FAULTS.values():
        assert lasting(fault) == fault


def test_a_dead_letter_is_told_with_its_reason_and_its_task():
    message = json.dumps({"headers": {"id": "a"}, "body": "x"})
    assert reason(json.dumps({"reason": "poison", "queue": "batch", "at": 1}) + "\n" + message) == "poison a"
    assert reason(json.dumps({"reason": "not JSON", "queue": "batch", "at": 1}) + "\njunk") == "not JSON ?"
