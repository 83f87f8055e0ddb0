"""Bills of batches that a budget pays for: the bounds of their lines, and what is counted when they are over.

A bill is there from the hold until it is settled. It is made up a piece of the lines at a time, for a batch
may have a million: how far that is stands in its row, so that whoever comes next goes on from there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, insert, select, update

from gaelp_tasks.db.batch_pieces import open_numbers, portions
from gaelp_tasks.db.batch_rows import BATCHES, BILLS, BOUNDS, LINES, OVER
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.models.batch import Batch
from gaelp_tasks.models.money import Charge, CostKind

__all__ = [
    "Bill",
    "LineBound",
    "Ran",
    "advance",
    "close",
    "due",
    "keep_bounds",
    "key_of",
    "locked",
    "open_bill",
    "ran",
]

PIECE = 500  #: lines of one step
PIECE_BYTES = 1024**2  #: of results in one step, which who serves others parses; a longer one comes alone


class LineBound(NamedTuple):
    """What a line may cost at most."""

    number: int
    model: str  #: that is asked for, '' for none
    prompt_tokens: int
    completion_tokens: int
    amount_micro: int


class Bill(NamedTuple):
    """The bill of a batch, as far as it is made up."""

    batch: int  #: the key of its row
    batch_id: str
    tenant: str
    hold: str  #: the key of its hold
    counted_to: int  #: lines up to this one are in `charges`
    charges: tuple[Charge, ...]


class Ran(NamedTuple):
    """A line that has a result, whole or cut, and its bound."""

    number: int
    embeds: bool
    result: str  #: JSON
    model: str
    prompt_tokens: int
    completion_tokens: int
    wasted_tokens: int


def key_of(batch: Batch) -> str:
    """Under which it is held; an id of an idempotency key may come again where its batch has failed."""
    return f"batch:{batch.id}@{batch.created_at:%Y%m%dT%H%M%S.%f}"


async def keep_bounds(db: Database, batch_id: str, bounds: Sequence[LineBound]) -> int:
    """Keep the bounds of those of these lines that are to be run; what these cost at most, together.

    The lines are there already. Raises DatabaseUnavailable.
    """
    async with db.writing() as session:
        key = await session.scalar(select(BATCHES.c.key).where(BATCHES.c.id == batch_id))
        if key is None:
            return 0
        there = await open_numbers(session, key, [one.number for one in bounds])
        good = [one for one in bounds if one.number in there]
        rows = [{"batch": key, "wasted_tokens": 0, **one._asdict()} for one in good]
        for row in rows:
            del row["amount_micro"]
        if rows:
            await session.execute(insert(BOUNDS), rows)
        return sum(one.amount_micro for one in good)


async def open_bill(session: Session, batch: Batch) -> None:
    """Its hold is being made in this transaction."""
    key = await session.scalar(select(BATCHES.c.key).where(BATCHES.c.id == batch.id))
    bill: dict[str, Any] = {
        "batch": key,
        "tenant": batch.tenant,
        "hold": key_of(batch),
        "counted_to": 0,
        "charges": [],
    }
    await session.execute(insert(BILLS).values(bill))


async def due(db: Database, batch_id: str | None = None) -> list[Bill]:
    """The bills of batches that are over; of this one, or of all. Raises DatabaseUnavailable."""
    asked = _bills.where(BATCHES.c.state.in_(OVER)).order_by(BILLS.c.batch)
    if batch_id is not None:
        asked = asked.where(BATCHES.c.id == batch_id)
    async with db.reading() as session:
        return [_bill(row) for row in await session.execute(asked)]


async def ran(db: Database, bill: Bill) -> tuple[int, list[Ran]]:
    """The next lines that have a result, behind those that are counted, and how far these go; 0 at the end.

    They change no more, for the batch is over. Raises DatabaseUnavailable.
    """
    sizes = (
        select(LINES.c.number, LINES.c.result_bytes)
        .where(LINES.c.batch == bill.batch, LINES.c.number > bill.counted_to, LINES.c.result_bytes > 0)
        .order_by(LINES.c.number)
        .limit(PIECE)
    )
    async with db.reading() as session:
        found = (await session.execute(sizes)).all()
        some = next(portions(((row.number, row.result_bytes) for row in found), most_bytes=PIECE_BYTES), [])
        if not some:
            return 0, []
        bounds = (BOUNDS.c[name] for name in Ran._fields[3:])
        asked = (
            select(LINES.c.number, LINES.c.embeds, LINES.c.result, *bounds)
            .join(BOUNDS, (BOUNDS.c.batch == LINES.c.batch) & (BOUNDS.c.number == LINES.c.number))
            .where(LINES.c.batch == bill.batch, LINES.c.number.in_(some))
            .order_by(LINES.c.number)
        )
        return some[-1], [Ran(*row) for row in await session.execute(asked)]


async def locked(session: Session, bill: Bill) -> bool:
    """Whether it is as it was, and nobody else counts or settles it before this transaction is over."""
    asked = select(BILLS.c.counted_to).where(BILLS.c.batch == bill.batch, BILLS.c.hold == bill.hold)
    return await session.scalar(asked.with_for_update()) == bill.counted_to


async def advance(session: Session, bill: Bill) -> None:
    """Write down how far a bill is, which is locked."""
    charges = [[one.kind.value, one.quantity, one.amount_micro] for one in bill.charges]
    values = {"counted_to": bill.counted_to, "charges": charges}
    await session.execute(update(BILLS).where(BILLS.c.batch == bill.batch).values(values))


async def close(session: Session, bill: Bill) -> None:
    """It is settled."""
    await session.execute(delete(BILLS).where(BILLS.c.batch == bill.batch))


_bills = select(BILLS, BATCHES.c.id).join(BATCHES, BATCHES.c.key == BILLS.c.batch)


def _bill(row: Any) -> Bill:
    charges = tuple(Charge(CostKind(kind), quantity, micro) for kind, quantity, micro in row.charges)
    return Bill(row.batch, row.id, row.tenant, row.hold, row.counted_to, charges)
