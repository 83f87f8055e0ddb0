"""How `gaelp batch` shows a batch: in words, by a bar on a terminal, by a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gaelp_tasks.cli.output import note
from gaelp_tasks.models.batch import Batch, BatchState, eta_s

__all__ = ["duration", "lines", "outcomes", "reading", "watching"]

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


def lines(batch: Batch) -> Iterator[tuple[str, str]]:
    """What `status` says, name and value."""
    counts, now = batch.counts, datetime.now(UTC)
    yield "id", batch.id
    yield "state", batch.state.value + (f": {batch.trouble}" if batch.trouble else "")
    if batch.name:
        yield "file", batch.name
    yield "tier", batch.tier.value
    yield "lines", f"{counts.total:,}: {outcomes(batch)}"
    if not batch.is_over:
        yield "left", duration(eta_s(batch, now))
    if not batch.is_over and batch.seen_at is not None:
        quiet_s = (now - batch.seen_at).total_seconds()
        if quiet_s >= QUIET_S:
            yield "waits", _why_quiet(batch, duration(quiet_s))
    if batch.expires_at is not None and not batch.is_over:
        left_s = (batch.expires_at - now).total_seconds()
        yield "window", f"closes in {duration(left_s)}" if left_s > 0 else "has closed"
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
def watching() -> Iterator[Callable[[Batch], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
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

            def move(batch: Batch) -> None:
                counts, left = batch.counts, duration(eta_s(batch, datetime.now(UTC)))
                state = batch.state.value
                bar.update(task, description=state, total=counts.total, completed=counts.ended, left=left)

            yield move
        return
    told_at, told = float("-inf"), ""

    def line(batch: Batch) -> None:
        nonlocal told_at, told
        state = batch.state.value
        if state == told and monotonic() - told_at < TELL_S:
            return
        told_at, told = monotonic(), state
        left = (
            f", {duration(eta_s(batch, datetime.now(UTC)))} left"
            if batch.state is BatchState.IN_PROGRESS
            else ""
        )
        note(f"{state}: {batch.counts.ended:,} of {batch.counts.total:,}{left}")

    yield line


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """How many lines were read: live on a terminal, by lines elsewhere."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.completed:,.0f} lines read"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda count, _bad: bar.update(task, completed=count)
        return
    told_at = monotonic()

    def line(count: int, bad: int) -> None:
        nonlocal told_at
        if monotonic() - told_at >= TELL_S:
            told_at = monotonic()
            note(f"{count:,} lines read, {bad:,} of them bad.")

    yield line
