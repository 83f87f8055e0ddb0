"""What is done for batches whosever they are: called for, given up, thrown away when they are old, found."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, select, update

from gaelp_tasks.db.batch_pieces import fail_some, remove_some
from gaelp_tasks.db.batch_rows import BATCHES, BILLS, LINES, OVER
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch import BatchState, Counts
from gaelp_tasks.models.batch_work import Call, LineOf

__all__ = ["give_up", "lines_of", "prune", "stale"]

UNDER_WAY = (BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING)
MOST_CALLS = 500  #: in one go
AT_ONCE = 500  #: ids in one question
NOT_READ = "The program that read its file ended before the end of the file: submit it again."


async def stale(db: Database, *, before: datetime, now: datetime) -> list[Call]:
    """A new call for each batch under way that nobody has worked on since, whosever it is.

    One that waits for its window is called for when that has opened, and nobody has come to it. Each counts
    as worked on now: who asks again at once gets others. Raises DatabaseUnavailable.
    """
    forsaken = BATCHES.c.state.in_([state.value for state in UNDER_WAY]) & (BATCHES.c.seen_at < before)
    until = BATCHES.c.waits_until
    forsaken &= until.is_(None) | (until < before) | (BATCHES.c.state != BatchState.IN_PROGRESS.value)
    asked = select(BATCHES.c.key, BATCHES.c.tenant, BATCHES.c.id, BATCHES.c.ticket).where(forsaken)
    async with db.writing() as session:
        lock = asked.order_by(BATCHES.c.seen_at).limit(MOST_CALLS).with_for_update(skip_locked=True)
        rows = (await session.execute(lock)).all()
        called = BATCHES.c.key.in_([row.key for row in rows])
        again = {"seen_at": now, "ticket": BATCHES.c.ticket + 1}
        await session.execute(update(BATCHES).where(called).values(again))
        return [Call(row.tenant, row.id, row.ticket + 1) for row in rows]


async def give_up(db: Database, *, before: datetime, now: datetime) -> None:
    """Fail the batches whose file nobody has gone on reading since; their lines become errors.

    So do those of batches that failed, where the program that gave them up died meanwhile. Raises
    DatabaseUnavailable.
    """
    forsaken = (BATCHES.c.state == BatchState.VALIDATING.value) & (BATCHES.c.seen_at < before)
    ends = {"state": BatchState.FAILED.value, "ended_at": now, "trouble": NOT_READ}
    async with db.writing() as session:
        await session.execute(update(BATCHES).where(forsaken).values(ends))
    done, *others = (BATCHES.c[name] for name in Counts._fields if name != "total")
    ended = sum(others, start=done)
    unfinished = (BATCHES.c.state == BatchState.FAILED.value) & (BATCHES.c.total > ended)
    key = 0
    while True:
        async with db.writing() as session:
            row = (await session.execute(_next(unfinished, key))).one_or_none()
            if row is None:
                return
            if not await fail_some(session, row, now=now):
                key = row.key


async def prune(db: Database, before: datetime) -> int:
    """Throw away what was over before, with its texts; how many these were. Raises DatabaseUnavailable.

    What is still to be settled of a batch is read from its lines: it stays until then.
    """
    billed = select(BILLS.c.batch).where(BILLS.c.batch == BATCHES.c.key).exists()
    old = BATCHES.c.state.in_(OVER) & (BATCHES.c.ended_at < before) & ~billed
    key = thrown = 0
    while True:
        async with db.writing() as session:
            row = (await session.execute(_next(old, key))).one_or_none()
            if row is None:
                return thrown
            if await remove_some(session, row):
                key, thrown = row.key, thrown + 1


async def lines_of(db: Database, task_ids: Collection[str], tenant: str | None) -> list[LineOf]:
    """Which of these invocations are lines of batches, of this tenant or of any with None.

    No index has them: it goes through all lines. Raises DatabaseUnavailable.
    """
    found: list[LineOf] = []
    names = list(task_ids)
    for at in range(0, len(names), AT_ONCE):
        asked = (
            select(LINES.c.task_id, BATCHES.c.id, LINES.c.number, LINES.c.outcome.is_(None))
            .join(BATCHES, BATCHES.c.key == LINES.c.batch)
            .where(LINES.c.task_id.in_(names[at : at + AT_ONCE]))
            .order_by(LINES.c.batch, LINES.c.number)
        )
        if tenant is not None:
            asked = asked.where(LINES.c.tenant == tenant)
        async with db.reading() as session:
            found += [LineOf(*row) for row in await session.execute(asked)]
    return found


def _next(which: ColumnElement[bool], after: int) -> Select[Any]:
    """The row of the first of these behind this key, locked; one that somebody works on is passed over."""
    asked = select(BATCHES).where(which, BATCHES.c.key > after).order_by(BATCHES.c.key)
    return asked.limit(1).with_for_update(skip_locked=True)
