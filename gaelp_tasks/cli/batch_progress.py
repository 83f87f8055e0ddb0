"""How `gaelp batch` shows a batch: in words, by a bar on a terminal, by a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gaelp_tasks.cli.output import note
from gaelp_tasks.models.batch import Batch, BatchState, closed_until, eta_s

__all__ = ["duration", "lines", "outcomes", "reading", "waits", "watching", "writing"]

QUIET_S = 30.0  #: after this somebody should look whether there is a worker
TELL_S = 10.0  #: between two lines where there is no terminal


def duration(seconds: float | None) -> str:
    """`3 d 4 h`, `2 h 5 min`, `40 s`; '?' where it is not known."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    for size, name, part, part_name in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {part_name}"
    return f"{whole} s"


def waits(batch: Batch, until: datetime) -> str:
    """What one outside of its windows waits for."""
    assert batch.hours is not None  # noqa: S101  it would wait for none
    expires = until == batch.expires_at
    to = f"{until.astimezone(ZoneInfo(batch.hours.zone)):%Y-%m-%d %H:%M %Z}"
    return f"its window, {batch.hours}, {'and expires at' if expires else 'until'} {to}"


def lines(batch: Batch, lately: Sequence[datetime] = ()) -> Iterator[tuple[str, str]]:
    """What `status` says, name and value; `lately` as in eta_s."""
    counts, now = batch.counts, datetime.now(UTC)
    yield "id", batch.id
    yield "state", batch.state.value + (f": {batch.trouble}" if batch.trouble else "")
    if batch.name:
        yield "file", batch.name
    yield "tier", batch.tier.value
    yield "lines", f"{counts.total:,}: {outcomes(batch)}"
    if not batch.is_over:
        yield "left", duration(eta_s(batch, now, lately)) + (" inside its window" if batch.hours else "")
    if batch.hours is not None:
        yield "window", str(batch.hours)
    if (until := closed_until(batch, now)) is not None:
        yield "waits", f"for {waits(batch, until)}"
    elif not batch.is_over and batch.seen_at is not None:
        quiet_s = (now - max(batch.seen_at, batch.waits_until or batch.seen_at)).total_seconds()
        if quiet_s >= QUIET_S:
            yield "waits", _why_quiet(batch, duration(quiet_s))
    if batch.expires_at is not None and not batch.is_over:
        left_s = (batch.expires_at - now).total_seconds()
        yield "expires", f"in {duration(left_s)}" if left_s > 0 else "now"
    if batch.started_at is not None:
        yield "took", duration(((batch.ended_at or now) - batch.started_at).total_seconds())


def _why_quiet(batch: Batch, since: str) -> str:
    if batch.state is BatchState.VALIDATING:
        return (
            f"no line has come for {since}; after an hour of that it fails. If the program that submits it "
            f"is gone, submit the file again, and: gaelp batch cancel {batch.id}"
        )
    return f"nobody has worked on it for {since}: does `gaelp status` show a worker?"


def outcomes(batch: Batch) -> str:
    """`7 done, 2 failed, 1 open`."""
    counts = batch.counts
    names = ("failed", "invalid", "expired", "cancelled", "open")
    told = [f"{getattr(counts, name):,} {name}" for name in names if getattr(counts, name)]
    return ", ".join([f"{counts.done:,} done", *told])


@contextmanager
def watching() -> Iterator[Callable[[Batch, Sequence[datetime]], None]]:
    """A bar on a terminal, a line now and then elsewhere; it is told a batch, and `lately` as in eta_s."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None, left="?")

            def move(batch: Batch, lately: Sequence[datetime]) -> None:
                counts, left = batch.counts, duration(eta_s(batch, datetime.now(UTC), lately))
                state = _state(batch)
                bar.update(task, description=state, total=counts.total, completed=counts.ended, left=left)

            yield move
        return
    told_at, told = float("-inf"), ""

    def line(batch: Batch, lately: Sequence[datetime]) -> None:
        nonlocal told_at, told
        state = _state(batch)
        if state == told and monotonic() - told_at < TELL_S:
            return
        told_at, told = monotonic(), state
        left = (
            f", {duration(eta_s(batch, datetime.now(UTC), lately))} left"
            if batch.state is BatchState.IN_PROGRESS
            else ""
        )
        note(f"{state}: {batch.counts.ended:,} of {batch.counts.total:,}{left}")

    yield line


def _state(batch: Batch) -> str:
    """With the time until which it waits."""
    until = closed_until(batch, datetime.now(UTC))
    if until is None or batch.hours is None:
        return batch.state.value
    return f"{batch.state.value}, waits until {until.astimezone(ZoneInfo(batch.hours.zone)):%a %H:%M %Z}"


@contextmanager
def reading(size_bytes: int | None) -> Iterator[Callable[[int, int, int], None]]:
    """How many lines of a file of this size were read, how many are bad, and how many bytes these are.

    A bar on a terminal, a line now and then elsewhere; without a size only how many there are so far.
    """
    with _progress(size_bytes or None, "{task.fields[count]:,} lines read", count=0) as move:

        def tell(count: int, bad: int, read_bytes: int) -> None:
            part = f" ({read_bytes / size_bytes:.0%})" if size_bytes else ""
            move(read_bytes, f"{count:,} lines read{part}, {bad:,} of them bad.", count=count)

        yield tell


@contextmanager
def writing(total: int) -> Iterator[Callable[[int], None]]:
    """How many lines of so many were written; the same."""
    with _progress(total, "{task.completed:,.0f} lines written") as move:
        yield lambda count: move(count, f"{count:,} of {total:,} lines written.")


@contextmanager
def _progress(total: int | None, words: str, **fields: Any) -> Iterator[Callable[..., None]]:
    """It is told how far one is, and that in a sentence."""
    if sys.stderr.isatty():
        known: tuple[ProgressColumn, ...] = (BarColumn(), TaskProgressColumn())
        columns: tuple[ProgressColumn, ...] = (TextColumn(words), TimeElapsedColumn())
        if total is not None:
            columns = (columns[0], *known, columns[1], TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total, **fields)
            yield lambda done, _sentence, **more: bar.update(task, completed=done, **more)
        return
    told_at = monotonic()

    def line(_done: int, sentence: str, **_more: int) -> None:
        nonlocal told_at
        if monotonic() - told_at >= TELL_S:
            told_at = monotonic()
            note(sentence)

    yield line
