"""What became of a line, by Celery's record of its invocation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.db.batch_rows import storable
from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.services.batches import as_json
from gaelp_tasks.tasks.batch_lines import _record, _within, verdict


def success(stop_reason):
    return {"status": "SUCCESS", "result": {"text": "x", "stop_reason": stop_reason}}


@pytest.mark.parametrize("stop_reason", ["stop", "length"])
def test_an_answer_that_ended_by_itself_is_a_result(stop_reason):
    ended = verdict(7, success(stop_reason))
    assert (ended.number, ended.outcome, ended.code, ended.why) == (7, LineOutcome.DONE, "", "")
    assert '"x"' in ended.result


@pytest.mark.parametrize("stop_reason", ["deadline", "stall", "budget", "expired", "another"])
def test_an_answer_that_was_cut_is_an_error_with_its_text(stop_reason):
    ended = verdict(7, success(stop_reason))
    assert (ended.outcome, ended.code) == (LineOutcome.FAILED, stop_reason)
    assert ended.why.endswith(".")
    assert '"x"' in ended.result


def test_a_cancelled_or_revoked_line_is_cancelled():
    assert verdict(7, success("cancelled")).outcome is LineOutcome.CANCELLED
    assert verdict(7, {"status": "REVOKED", "result": None}).outcome is LineOutcome.CANCELLED


@pytest.mark.parametrize(
    ("said", "told"), [(["It broke.", 5], "It broke. 5"), ("It broke.", "It broke."), (None, "It failed.")]
)
def test_a_failure_is_told_by_its_class_and_sentence(said, told):
    ended = verdict(7, {"status": "FAILURE", "result": {"exc_type": "NodeFailed", "exc_message": said}})
    assert (ended.outcome, ended.code, ended.why) == (LineOutcome.FAILED, "NodeFailed", told)


@given(st.text() | st.just('{"status": "SUCCESS"}') | st.just('{"status": "FAILURE", "result": 5}'))
def test_a_damaged_record_is_a_failure_and_holds_up_nobody(text):
    told = _record(text)
    assert verdict(7, told).outcome is LineOutcome.FAILED


@given(st.dictionaries(st.text(), st.integers(0, 20 * 1024**2)))
def test_a_look_brings_few_long_records_and_always_one(sizes):
    chosen = list(_within(sizes))
    there = [name for name, size in sizes.items() if size]
    assert chosen == there[: len(chosen)]
    assert bool(chosen) == bool(there)
    assert len(chosen) <= 1 or sum(sizes[name] for name in chosen) <= 8 * 1024**2


def test_what_no_file_takes_as_it_is_is_escaped():
    assert as_json({"a": "ö"}) == '{"a": "ö"}'
    assert as_json({"a": "ö\ud83d"}) == r'{"a": "\u00f6\ud83d"}'


def test_what_no_database_takes_is_replaced():
    assert storable("a\0b\ud83d") == "a\N{REPLACEMENT CHARACTER}b?"
