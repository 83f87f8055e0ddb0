"""How a batch is shown in words."""

from datetime import UTC, datetime, timedelta

import pytest

from gaelp_tasks.cli.batch_progress import duration, lines, outcomes, watching
from gaelp_tasks.models.batch import Batch, BatchState, Counts
from gaelp_tasks.models.invocation import Tier


def batch(**more):
    now = datetime.now(UTC)
    known = {
        "id": "batch_1",
        "tenant": "",
        "state": BatchState.IN_PROGRESS,
        "tier": Tier.BATCH,
        "name": "x.jsonl",
        "counts": Counts(total=1000, done=400, failed=100),
        "created_at": now,
        "started_at": now - timedelta(seconds=100),
        "ended_at": None,
        "expires_at": None,
        "seen_at": now,
        "trouble": "",
    }
    return Batch(**known | more)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "?"),
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 5 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_a_duration_has_two_parts_at_most(seconds, shown):
    assert duration(seconds) == shown


def test_only_outcomes_that_there_are_are_named():
    assert outcomes(batch()) == "400 done, 100 failed, 500 open"
    assert outcomes(batch(counts=Counts(total=2, done=2))) == "2 done"


def test_a_batch_under_way_tells_what_is_left_and_when_its_window_closes():
    told = dict(lines(batch(expires_at=datetime.now(UTC) + timedelta(hours=5, minutes=5))))
    assert told["lines"] == "1,000: 400 done, 100 failed, 500 open"
    assert told["left"] == "1 min 40 s"
    assert told["window"].startswith("closes in 5 h ")
    assert told["took"] == "1 min 40 s"
    assert "waits" not in told


def test_a_batch_that_nobody_works_on_says_so():
    told = dict(lines(batch(seen_at=datetime.now(UTC) - timedelta(minutes=5))))
    assert told["waits"].startswith("nobody has worked on it for 5 min 0 s")


def test_a_batch_that_failed_says_why_and_nothing_of_what_is_left():
    over = batch(state=BatchState.FAILED, trouble="So it is.", ended_at=datetime.now(UTC))
    told = dict(lines(over))
    assert told["state"] == "failed: So it is."
    assert told.keys().isdisjoint({"left", "window", "waits"})


def test_without_a_terminal_a_line_is_written_at_each_change(capsys):
    with watching() as tell:
        tell(batch())
        tell(batch())
        tell(batch(state=BatchState.COMPLETED))
    told = capsys.readouterr().err.splitlines()
    assert told == ["gaelp: in_progress: 500 of 1,000, 1 min 40 s left", "gaelp: completed: 500 of 1,000"]
