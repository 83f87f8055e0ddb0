"""A batch from its file to the day when it is thrown away: a piece at a time, whatever its size."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, BinaryIO, TextIO

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.db import batch_upkeep
from gaelp_tasks.db.batches import Batches, Beside
from gaelp_tasks.db.database import Database
from gaelp_tasks.errors import Conflict
from gaelp_tasks.models.batch import Batch, BatchState
from gaelp_tasks.models.batch_file import BadLine, Defaults, Line, Reader, numbered, record
from gaelp_tasks.models.batch_work import TakenOver
from gaelp_tasks.models.frozen import well_formed
from gaelp_tasks.registry import refuse_unknown
from gaelp_tasks.runtime import Runtime
from gaelp_tasks.settings import Settings

__all__ = ["as_json", "begin", "cancel", "pieces", "prune", "take_in", "write_out"]

PIECE = 500  #: lines of one transaction
PIECE_BYTES = 4 * 1024**2  #: of lines in memory at once; a longer one comes with those before it
TELL_LINES = 100  #: between two words on how far the writing is
PIECE_S = 10.0  #: lines that come slowly are kept after this, and the batch is known to be read on
AGO_S = 5.0  #: a batch that somebody worked on since needs no call
NOTHING = "No line of the file could be read: `gaelp batch results ID --errors` says why."
EMPTY = "The file has no lines."


def pieces(
    file: BinaryIO, defaults: Defaults, settings: Settings, *, tick: Callable[[], float] = monotonic
) -> Iterator[list[Line | BadLine]]:
    """Every line of the file, checked, some at a time. Raises what reading the file raises."""
    most_bytes = int(settings.max_message_bytes)
    reader = Reader(
        defaults,
        most_bytes=most_bytes,
        max_prompt_bytes=settings.most_prompt_bytes,
        check=partial(refuse_unknown, settings=settings),
    )
    piece: list[Line | BadLine] = []
    size_bytes, since = 0, tick()
    for number, raw in numbered(file, most_bytes=most_bytes):
        piece.append(reader.read(number, raw))
        size_bytes += len(raw or b"")
        if len(piece) >= PIECE or size_bytes >= PIECE_BYTES or tick() - since >= PIECE_S:
            yield piece
            piece, size_bytes, since = [], 0, tick()
    if piece:
        yield piece


async def begin(
    batches: Batches,
    batch_id: str,
    *,
    within_s: float | None = None,
    beside: Beside | None = None,
    now: datetime | None = None,
) -> Batch:
    """Its file was read: the batch is in progress now, or failed, or it was cancelled meanwhile.

    Its window of `within_s` begins now; `beside` is done in the same transaction. Raises DatabaseUnavailable.
    """
    at = now or datetime.now(UTC)
    [batch] = await batches.find(batch_id)
    if batch.counts.to_run:
        expires_at = None if within_s is None else at + timedelta(seconds=within_s)
        to = BatchState.IN_PROGRESS
        more: dict[str, Any] = {"started_at": at, "expires_at": expires_at}
        moved = await batches.move(batch_id, to, now=at, beside=beside, **more)
    else:
        trouble = NOTHING if batch.counts.total else EMPTY
        moved = await batches.move(batch_id, BatchState.FAILED, now=at, trouble=trouble)
    if moved is None:
        [moved] = await batches.find(batch_id)
    return moved


async def take_in(
    batches: Batches,
    batch: Batch,
    file: BinaryIO,
    defaults: Defaults,
    settings: Settings,
    *,
    within_s: float | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Batch:
    """Read all of a file that is there; see `begin`. Raises DatabaseUnavailable."""
    try:
        for piece in pieces(file, defaults, settings):
            await batches.add(batch.id, piece, now=now())
    except TakenOver:  # it was cancelled, or given up
        [batch] = await batches.find(batch.id)
        return batch
    return await begin(batches, batch.id, within_s=within_s, now=now())


async def cancel(batches: Batches, batch: Batch, *, now: datetime) -> int | None:
    """Stop a batch; the ticket of a call for somebody to do that, None where somebody is there who notices.

    Raises Conflict where it is over, DatabaseUnavailable.
    """
    moved = await batches.move(batch.id, BatchState.CANCELLING, now=now)
    if moved is None and batch.state is not BatchState.CANCELLING:
        raise Conflict(f"It is {batch.state} already.")
    quiet_s = AGO_S if batch.seen_at is None else (now - batch.seen_at).total_seconds()
    is_alone = batch.state is BatchState.VALIDATING or batch.waits_until is not None
    if not is_alone and quiet_s < AGO_S:
        return None
    try:
        return await batches.summon(batch.id, now=now)
    except TakenOver:  # it is over by now
        return None


def prune(app: GaelpApp, db: Database, loop: Runtime) -> int:
    """Throw away what was over longer ago than the setting says; how many. Raises DatabaseUnavailable."""
    keep_s = app.settings.batch_keep_s
    return loop.run(batch_upkeep.prune(db, datetime.now(UTC) - timedelta(seconds=keep_s))) if keep_s else 0


def as_json(told: Any) -> str:
    """Readable, but for a half of a character that a model has made, which no file takes as it is."""
    text = json.dumps(told, ensure_ascii=False)
    return text if well_formed(text) == text else json.dumps(told)


async def write_out(
    batches: Batches,
    batch: Batch,
    out: TextIO,
    *,
    errors: bool,
    tell: Callable[[int], None] = lambda _count: None,
) -> int:
    """Write its results, or its errors, as JSONL in the order of the file; how many there are.

    `tell` hears now and then how many are written. Raises DatabaseUnavailable.
    """
    count = 0
    async for line in batches.ended(batch.id, errors=errors):
        out.write(as_json(record(line)) + "\n")
        count += 1
        if count % TELL_LINES == 0:
            tell(count)
    return count
