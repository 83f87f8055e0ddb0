"""How a batch is shown in words."""

from datetime import UTC, datetime, timedelta

import pytest

from gaelp_tasks.cli import batch_progress
from gaelp_tasks.cli.batch_progress import duration, lines, outcomes, reading, watching, writing
from gaelp_tasks.models.batch import Batch, BatchState, Counts
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours


def ticking():
    """A line ended in each fifth of a second."""
    now = datetime.now(UTC)
    return [now - timedelta(seconds=number / 5) for number in range(501)]


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
    told = dict(lines(batch(expires_at=datetime.now(UTC) + timedelta(hours=5, minutes=5)), ticking()))
    assert told["lines"] == "1,000: 400 done, 100 failed, 500 open"
    assert told["left"] == "1 min 40 s"
    assert told["expires"].startswith("in 5 h ")
    assert told["took"] == "1 min 40 s"
    assert "waits" not in told


def test_a_batch_that_nobody_works_on_says_so():
    told = dict(lines(batch(seen_at=datetime.now(UTC) - timedelta(minutes=5))))
    assert told["waits"].startswith("nobody has worked on it for 5 min 0 s")


def windows(*, closed):
    """An hour of the day by UTC, now or in twelve hours."""
    begin = datetime.now(UTC) + timedelta(hours=12 if closed else -0.5)
    return Hours.parse([f"{begin:%H:%M}-{begin + timedelta(hours=1):%H:%M}"])


def test_a_batch_outside_of_its_window_says_until_when_it_waits_and_not_that_nobody_works_on_it(capsys):
    long_ago = datetime.now(UTC) - timedelta(hours=5)
    waiting = batch(hours=windows(closed=True), seen_at=long_ago)
    told = dict(lines(waiting))
    opens = str(waiting.hours)[:5]
    assert told["window"] == str(waiting.hours)
    assert told["waits"].startswith(f"for its window, {waiting.hours}, until ")
    assert f" {opens} UTC" in told["waits"]
    soon = waiting._replace(expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert "and expires at" in dict(lines(soon))["waits"]
    with watching() as tell:
        tell(waiting, ())
    assert f"in_progress, waits until {datetime.now(UTC) + timedelta(hours=12):%a} {opens} UTC" in (
        capsys.readouterr().err
    )


def test_a_batch_to_which_nobody_comes_once_its_window_has_opened_says_so():
    late = batch(hours=windows(closed=False), seen_at=datetime.now(UTC) - timedelta(hours=5))
    opened = datetime.now(UTC) - timedelta(minutes=2)
    told = dict(lines(late._replace(waits_until=opened)))
    assert told["waits"].startswith("nobody has worked on it for 2 min 0 s")
    assert "waits" not in dict(lines(late._replace(waits_until=datetime.now(UTC))))


def test_a_batch_that_failed_says_why_and_nothing_of_what_is_left():
    over = batch(state=BatchState.FAILED, trouble="So it is.", ended_at=datetime.now(UTC))
    told = dict(lines(over))
    assert told["state"] == "failed: So it is."
    assert told.keys().isdisjoint({"left", "expires", "waits"})


def test_without_a_terminal_a_line_is_written_at_each_change(capsys):
    with watching() as tell:
        tell(batch(), ticking())
        tell(batch(), ticking())
        tell(batch(state=BatchState.COMPLETED), ())
    told = capsys.readouterr().err.splitlines()
    assert told == ["gaelp: in_progress: 500 of 1,000, 1 min 40 s left", "gaelp: completed: 500 of 1,000"]


def test_reading_and_writing_tell_how_far_they_are(capsys, monkeypatch):
    monkeypatch.setattr(batch_progress, "TELL_S", 0.0)
    with reading(2000) as tell:
        tell(10, 1, 500)
    with reading(None) as tell:
        tell(10, 1, 0)
    with writing(4000) as tell:
        tell(1000)
    assert capsys.readouterr().err.splitlines() == [
        "gaelp: 10 lines read (25%), 1 of them bad.",
        "gaelp: 10 lines read, 1 of them bad.",
        "gaelp: 1,000 of 4,000 lines written.",
    ]


def test_on_a_terminal_a_bar_tells_the_part_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with reading(2000) as tell:
        tell(10, 1, 500)
    with writing(4000) as tell:
        tell(3000)
    told = capsys.readouterr().err
    for shown in ("10 lines read", "25%", "3,000 lines written", "75%", "left"):
        assert shown in told
