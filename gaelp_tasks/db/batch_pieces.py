"""A batch's lines in pieces, each within the caller's transaction: closed, told, deleted."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from gaelp_tasks.db.batch_rows import BATCHES, BILLS, BOUNDS, LINES, storable
from gaelp_tasks.errors import Conflict
from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.batch_work import Ended

__all__ = [
    "close_some",
    "fail_some",
    "is_billed",
    "known_ids",
    "open_numbers",
    "portions",
    "remove_some",
    "write_outcomes",
]

PIECE = 500  #: lines of one question; databases bound what one may name
PIECE_BYTES = 8 * 1024**2  #: of texts in memory at once; a longer one comes alone
AT_ONCE = 5000  #: lines of one transaction, so that no writer keeps the others out for long
NOT_RUN = "The batch failed before this line could be run."


async def close_some(
    session: AsyncSession, row: Any, outcome: LineOutcome, why: str, *, now: datetime
) -> int:
    """Give this outcome to a piece of the lines of a batch that have none, and count them; how many.

    0 where none is left. `row` is that of the batch, locked.
    """
    rest = (LINES.c.batch == row.key, LINES.c.outcome.is_(None))
    asked = select(LINES.c.number).where(*rest).order_by(LINES.c.number).limit(AT_ONCE)
    numbers = (await session.scalars(asked)).all()
    if not numbers:
        return 0
    await session.execute(
        update(LINES)
        .where(*rest, LINES.c.number >= numbers[0], LINES.c.number <= numbers[-1])
        .values(outcome=outcome.value, why=why, ended_at=now)
    )
    counted = {outcome.value: getattr(row, outcome.value) + len(numbers), "seen_at": now}
    await session.execute(update(BATCHES).where(BATCHES.c.key == row.key).values(counted))
    return len(numbers)


async def fail_some(session: AsyncSession, row: Any, *, now: datetime) -> int:
    """The same for a batch that has failed before it could begin."""
    return await close_some(session, row, LineOutcome.FAILED, NOT_RUN, now=now)


async def remove_some(session: AsyncSession, row: Any) -> bool:
    """Delete a piece of a batch's lines, or itself where none is left; whether it is gone.

    `row` is that of the batch, locked. Raises Conflict where what it has cost is not settled yet.
    """
    if await is_billed(session, row.key):
        raise Conflict("What it has cost is not settled yet: `gaelp api` does that within seconds.")
    first = select(LINES.c.number).where(LINES.c.batch == row.key).order_by(LINES.c.number)
    numbers = (await session.scalars(first.limit(AT_ONCE))).all()
    if numbers:
        for table in (BOUNDS, LINES):
            those = (table.c.batch == row.key, table.c.number <= numbers[-1])
            await session.execute(delete(table).where(*those))
        return False
    await session.execute(delete(BATCHES).where(BATCHES.c.key == row.key))
    return True


async def known_ids(session: AsyncSession, key: int, ids: Sequence[str]) -> set[str]:
    """Those of these custom_ids that the batch with this key has."""
    known: set[str] = set()
    for at in range(0, len(ids), PIECE):
        asked = select(LINES.c.custom_id).where(
            LINES.c.batch == key, LINES.c.custom_id.in_(ids[at : at + PIECE])
        )
        known.update(await session.scalars(asked))
    return known


async def open_numbers(session: AsyncSession, key: int, numbers: Sequence[int]) -> set[int]:
    """Those of these lines of the batch with this key that have no outcome."""
    found: set[int] = set()
    for at in range(0, len(numbers), PIECE):
        asked = select(LINES.c.number).where(
            LINES.c.batch == key,
            LINES.c.number.in_(numbers[at : at + PIECE]),
            LINES.c.outcome.is_(None),
        )
        found.update(await session.scalars(asked))
    return found


async def write_outcomes(session: AsyncSession, key: int, ended: Sequence[Ended], now: datetime) -> None:
    """What has become of these lines of the batch with this key; none of them has an outcome yet."""
    # in pieces: the driver keeps the texts of all that one call is given
    each = (
        update(LINES)
        .where(LINES.c.batch == key, LINES.c.number == bindparam("at_number"))
        .values(
            outcome=bindparam("with_outcome"),
            code=bindparam("with_code"),
            why=bindparam("with_why"),
            result=bindparam("with_result"),
            result_bytes=bindparam("with_bytes"),
            ended_at=now,
        )
    )
    given = [
        {
            "at_number": one.number,
            "with_outcome": one.outcome.value,
            "with_code": storable(one.code)[:100],
            "with_why": storable(one.why),
            "with_result": one.result,
            "with_bytes": len(one.result),
        }
        for one in ended
    ]
    connection = await session.connection()
    await connection.execute(each, given)
    for one in ended:
        if one.wasted_tokens:  # few
            those = (BOUNDS.c.batch == key, BOUNDS.c.number == one.number)
            await session.execute(update(BOUNDS).where(*those).values(wasted_tokens=one.wasted_tokens))


async def is_billed(session: AsyncSession, key: int) -> bool:
    """Whether a budget pays for the batch with this key, and what it costs is not settled yet."""
    return await session.scalar(select(BILLS.c.batch).where(BILLS.c.batch == key)) is not None


def portions(sizes: Iterable[tuple[int, int]], *, most_bytes: int | None = None) -> Iterator[list[int]]:
    """Numbers of lines, as many at once as `most_bytes` (PIECE_BYTES) allow; a longer one comes alone."""
    most_bytes = PIECE_BYTES if most_bytes is None else most_bytes
    some: list[int] = []
    total = 0
    for number, size_bytes in sizes:
        if some and total + size_bytes > most_bytes:
            yield some
            some, total = [], 0
        some.append(number)
        total += size_bytes
    if some:
        yield some
