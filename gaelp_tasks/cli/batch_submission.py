"""The file of `gaelp batch submit` on its way into the database; what is broken off leaves nothing half."""

import os
import signal
import stat
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from gaelp_tasks import app
from gaelp_tasks.cli.asking import Asking
from gaelp_tasks.cli.batch_progress import reading
from gaelp_tasks.cli.output import note
from gaelp_tasks.cli.signals import noted_signals
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.models.batch import Batch
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import TakenOver
from gaelp_tasks.models.schedule import Hours

if TYPE_CHECKING:
    from gaelp_tasks.db.batches import Batches

__all__ = ["STDIN", "take_in"]

STDIN = "-"
INTERRUPTED = "Its submission was interrupted: submit the file again."


def take_in(
    ask: "Asking[Batches]", path: Path, defaults: Defaults, within_s: float | None, hours: Hours | None = None
) -> Batch:
    """Read the file; Ctrl-C, SIGTERM or a closed terminal gives the batch up, with exit code 130."""
    batch: Batch | None = None
    with _as_ctrl_c():
        try:
            with noted_signals() as noted:  # broken off here, one could be there that nobody gives up
                batch = ask(
                    lambda batches: batches.create(
                        tier=defaults.tier,
                        name="" if str(path) == STDIN else path.name,
                        now=datetime.now(UTC),
                        hours=hours,
                    )
                )
            if noted.code:
                _interrupt()
            return _read_all(ask, batch, path, defaults, within_s)
        except BaseException as error:
            if batch is None:
                raise
            return _give_up(ask, batch.id, error)


def _give_up(ask: "Asking[Batches]", batch_id: str, error: BaseException) -> Batch:
    """Nothing of it will run; raises what broke it off, but for the cancel of somebody else."""
    if isinstance(error, TakenOver):
        note("It was cancelled while its file was read.")
        [batch] = ask(lambda batches: batches.find(batch_id))
        return batch
    interrupted = isinstance(error, KeyboardInterrupt)
    why = INTERRUPTED if interrupted else str(error)
    with suppress(DatabaseUnavailable, TakenOver):  # then beat gives it up, within the hour
        ask(lambda batches: batches.abandon(batch_id, why, now=datetime.now(UTC)))
    if interrupted:
        note(f"Interrupted: nothing of {batch_id} will run. Submit the file again.")
        raise typer.Exit(130) from None
    raise error


def _read_all(
    ask: "Asking[Batches]", batch: Batch, path: Path, defaults: Defaults, within_s: float | None
) -> Batch:
    from gaelp_tasks.services.batches import begin, pieces  # noqa: PLC0415  SQLAlchemy takes a while to import

    count = bad = 0
    with _read(path) as file, reading(_size_bytes(file)) as progress:
        for piece in pieces(file, defaults, app.settings):  # outside of the loop, or Ctrl-C would wait
            count += len(piece)
            bad += ask(partial(_add, batch.id, piece))
            progress(count, bad, _read_bytes(file))
    batch = ask(lambda batches: begin(batches, batch.id, within_s=within_s))
    if bad:
        note(f"{bad:,} of {count:,} lines cannot be read: gaelp batch results {batch.id} --errors")
    return batch


def _add(batch_id: str, piece: Any, batches: "Batches") -> Coroutine[Any, Any, int]:
    return batches.add(batch_id, piece, now=datetime.now(UTC))


@contextmanager
def _read(path: Path) -> Iterator[BinaryIO]:
    if str(path) == STDIN:
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        yield file


def _size_bytes(file: BinaryIO) -> int | None:
    """Of a file; None for a pipe or a terminal."""
    try:
        about = os.fstat(file.fileno())
    except OSError:
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _read_bytes(file: BinaryIO) -> int:
    """How far it was read; 0 where it does not tell."""
    try:
        return file.tell()
    except OSError:
        return 0


@contextmanager
def _as_ctrl_c() -> Iterator[None]:
    """What ends this program otherwise interrupts it instead, unless it is ignored, as under nohup."""
    before = {}
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is signal.SIG_DFL:
            before[one] = signal.signal(one, _interrupt)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _interrupt(*_: Any) -> None:
    if not callable(signal.getsignal(signal.SIGINT)):  # a shell's background jobs ignore it
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
