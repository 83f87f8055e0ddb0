"""Batches and their lines in SQL: written and read in pieces, whatever the size of the file.

One program at a time works on a batch: it takes it over under a name of its own, and whoever was there before
is refused from then on. A line gets its outcome once.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from gaelp_tasks.db.batch_pieces import (
    close_some,
    fail_some,
    is_billed,
    known_ids,
    open_numbers,
    portions,
    remove_some,
    write_outcomes,
)
from gaelp_tasks.db.batch_rows import BATCHES, LINES, OVER, batch_of, columns_of, ended_line_of, storable
from gaelp_tasks.db.database import Database
from gaelp_tasks.errors import Conflict
from gaelp_tasks.models.batch import TERMINAL, Batch, BatchState, Counts, LineOutcome, may_move, new_id
from gaelp_tasks.models.batch_file import BadLine, EndedLine, Line
from gaelp_tasks.models.batch_work import Asked, Ended, Held, Published, Reach, TakenOver
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours

__all__ = ["Batches", "Beside"]

Beside = Callable[[AsyncSession, Batch], Awaitable[None]]  #: what else belongs to a move
PIECE = 500  #: lines of one question; databases bound what one may name


class Batches:
    """The batches of one tenant; '' is nobody in particular. Methods raise DatabaseUnavailable."""

    def __init__(self, db: Database, tenant: str = "") -> None:
        self._db = db
        self._tenant = tenant

    # --- of a batch ---

    async def create(
        self,
        *,
        tier: Tier,
        name: str,
        now: datetime,
        hours: Hours | None = None,
        batch_id: str | None = None,
        owner: str = "",
    ) -> Batch:
        """A new one, whose file is being read. Raises Conflict where there is one of this id."""
        zeros = dict.fromkeys(
            ("deaths", "ticket", "published_to", "disturbed_to", "cleared_to", *Counts._fields), 0
        )
        batch_id = batch_id or new_id()
        given = {
            "id": batch_id,
            "tenant": self._tenant,
            "owner": owner,
            "state": BatchState.VALIDATING.value,
            "tier": tier.value,
            "name": storable(name)[:255],
            "created_at": now,
            "seen_at": now,
            "trouble": "",
            "hours": None if hours is None else hours.model_dump_json(),
        }
        try:
            async with self._db.writing() as session:
                await session.execute(insert(BATCHES).values(given | zeros))
                return batch_of(await self._row(session, batch_id))
        except IntegrityError:
            raise Conflict(f"There is a batch {batch_id} already.") from None

    async def find(self, beginning: str) -> list[Batch]:
        """Those whose id begins so, with or without `batch_`; at most two."""
        bare = beginning.removeprefix("batch_")
        asked = select(BATCHES).where(
            BATCHES.c.tenant == self._tenant, BATCHES.c.id.startswith(f"batch_{bare}", autoescape=True)
        )
        async with self._db.reading() as session:
            return [batch_of(row) for row in await session.execute(asked.limit(2))]

    async def newest(self, most: int, skip: int = 0) -> list[Batch]:
        """The last ones, the newest first, after `skip` of them."""
        asked = select(BATCHES).where(BATCHES.c.tenant == self._tenant).order_by(BATCHES.c.key.desc())
        async with self._db.reading() as session:
            return [batch_of(row) for row in await session.execute(asked.offset(skip).limit(most))]

    async def move(
        self,
        batch_id: str,
        to: BatchState,
        *,
        now: datetime,
        conductor: str | None = None,
        beside: Beside | None = None,
        **also: Any,
    ) -> Batch | None:
        """Move it as MOVES allows, with other columns; None where it may not move so.

        `beside` is done in the same transaction: the batch does not move where that raises. Raises TakenOver
        where there is none, or it is not the conductor's any more.
        """
        async with self._db.writing() as session:
            row = await self._row(session, batch_id, lock=True)
            if row is None or (conductor is not None and row.conductor != conductor):
                raise TakenOver
            if not may_move(BatchState(row.state), to):
                return None
            given = {"state": to.value, "seen_at": now} | also
            if to in TERMINAL:
                given |= {"ended_at": now, "conductor": None}
            await session.execute(update(BATCHES).where(self._is(batch_id)).values(given))
            batch = batch_of(await self._row(session, batch_id))
            if beside is not None:
                await beside(session, batch)
            return batch

    async def abandon(self, batch_id: str, why: str, *, now: datetime) -> None:
        """Fail one of which nothing will run; its lines become errors. Nothing where it is over already.

        Should the caller die meanwhile, beat goes on. Raises TakenOver where there is none.
        """
        if await self.move(batch_id, BatchState.FAILED, now=now, trouble=storable(why)) is None:
            return
        closed = 1
        while closed:
            async with self._db.writing() as session:
                row = await self._row(session, batch_id, lock=True)
                closed = 0 if row is None else await fail_some(session, row, now=now)

    async def remove(self, batch_id: str) -> bool:
        """Delete it with its texts, in pieces; False where it is not over. Raises Conflict as remove_some."""
        is_gone = False
        while not is_gone:
            async with self._db.writing() as session:
                row = await self._row(session, batch_id, lock=True)
                if row is not None and row.state not in OVER:
                    return False
                is_gone = row is None or await remove_some(session, row)
        return True

    # --- of its lines, while the file is read ---

    async def add(self, batch_id: str, lines: Sequence[Line | BadLine], *, now: datetime) -> int:
        """Keep these lines, in their order; how many of them are bad, those with a known custom_id too.

        Raises TakenOver where the batch is not being read any more.
        """
        async with self._db.writing() as session:
            row = await self._row(session, batch_id, lock=True)
            if row is None or BatchState(row.state) is not BatchState.VALIDATING:
                raise TakenOver
            known = await known_ids(session, row.key, [line.custom_id for line in lines if line.custom_id])
            given, bad = [], 0
            for line in lines:
                again = line.custom_id in known
                bad += again or isinstance(line, BadLine)
                given.append(columns_of(batch_id, line, now, again=again))
                if line.custom_id:
                    known.add(line.custom_id)
            both = {"batch": row.key, "tenant": self._tenant}
            await session.execute(insert(LINES), [both | values for values in given])
            counted = {"total": row.total + len(lines), "invalid": row.invalid + bad, "seen_at": now}
            await session.execute(update(BATCHES).where(self._is(batch_id)).values(counted))
            return bad

    # --- for who works on it ---

    async def summon(self, batch_id: str, *, now: datetime) -> int:
        """The ticket of a new call to work on it, which makes all earlier ones void. Raises TakenOver."""
        async with self._db.writing() as session:
            row = await self._row(session, batch_id, lock=True)
            if row is None or row.state in OVER:
                raise TakenOver
            given = {"ticket": row.ticket + 1, "seen_at": now, "waits_until": None}
            await session.execute(update(BATCHES).where(self._is(batch_id)).values(given))
            return int(row.ticket) + 1

    async def take_over(
        self, batch_id: str, conductor: str, *, ticket: int, now: datetime, died: bool
    ) -> Held:
        """Work on it from now on; whoever did before is refused. `died`: the one before is known to have.

        Raises TakenOver where there is nothing to do: it is unknown, being read, over, or newly called for.
        """
        async with self._db.writing() as session:
            row = await self._row(session, batch_id, lock=True)
            if row is None or row.ticket > ticket or row.state in {BatchState.VALIDATING.value, *OVER}:
                raise TakenOver
            in_order = row.conductor is None
            reach = Reach(*(getattr(row, name) for name in Reach._fields))
            if not in_order:
                reach = reach._replace(disturbed_to=reach.published_to)
            given = {"conductor": conductor, "seen_at": now, "deaths": row.deaths + died, "waits_until": None}
            await session.execute(update(BATCHES).where(self._is(batch_id)).values(given | reach._asdict()))
            is_paid = await is_billed(session, row.key)
            return Held(batch_of(row), reach, row.deaths + died, in_order, is_paid)

    async def waits(self, batch_id: str, *, ticket: int, now: datetime) -> bool:
        """Note that somebody waits to work on it; False where that call is void."""
        called = self._is(batch_id) & (BATCHES.c.ticket == ticket) & BATCHES.c.state.not_in(OVER)
        async with self._db.writing() as session:
            done: Any = await session.execute(update(BATCHES).where(called).values(seen_at=now))
            return bool(done.rowcount)

    async def leave(
        self,
        batch_id: str,
        conductor: str,
        reach: Reach,
        *,
        now: datetime,
        in_order: bool = True,
        until: datetime | None = None,
    ) -> None:
        """Leave it to whoever comes next, `until` at the earliest; nothing where somebody has it already.

        `in_order`: what was noted as published was published.
        """
        ours = self._is(batch_id) & (BATCHES.c.conductor == conductor)
        given = {"seen_at": now, "waits_until": until} | reach._asdict()
        given |= {"conductor": None} if in_order else {}
        async with self._db.writing() as session:
            await session.execute(update(BATCHES).where(ours).values(given))

    async def published(self, batch_id: str, *, after: int, to: int) -> AsyncIterator[list[Published]]:
        """Its readable lines between these numbers, without the first, in pieces."""
        key = await self._key(batch_id)
        while after < to:
            asked = (
                select(LINES.c.number, LINES.c.task_id, LINES.c.outcome)
                .where(LINES.c.batch == key, LINES.c.tenant == self._tenant)
                .where(LINES.c.number > after, LINES.c.number <= to)
                .order_by(LINES.c.number)
                .limit(PIECE)
            )
            async with self._db.reading() as session:
                rows = (await session.execute(asked)).all()
            if not rows:
                return
            after = rows[-1].number
            yield [
                Published(row.number, row.task_id, row.outcome is None)
                for row in rows
                if row.outcome != LineOutcome.INVALID.value
            ]

    async def next_lines(self, batch_id: str, *, after: int, most: int) -> list[Published]:
        """The next lines without an outcome behind this number."""
        return await self._without_outcome(batch_id, LINES.c.number > after, most)

    async def open_lines(self, batch_id: str, *, to: int) -> list[Published]:
        """Those without an outcome up to this number: no more than were out at a time."""
        return await self._without_outcome(batch_id, LINES.c.number <= to)

    async def _without_outcome(self, batch_id: str, which: Any, most: int | None = None) -> list[Published]:
        asked = (
            select(LINES.c.number, LINES.c.task_id)
            .where(LINES.c.batch == await self._key(batch_id), LINES.c.tenant == self._tenant)
            .where(which, LINES.c.outcome.is_(None))
            .order_by(LINES.c.number)
            .limit(most)
        )
        async with self._db.reading() as session:
            rows = (await session.execute(asked)).all()
        return [Published(row.number, row.task_id, is_open=True) for row in rows]

    async def asked(self, batch_id: str, numbers: Sequence[int]) -> AsyncIterator[list[Asked]]:
        """What these lines ask for, a few at once; those with an outcome are left out."""
        key = await self._key(batch_id)
        for at in range(0, len(numbers), PIECE):
            these = (LINES.c.batch == key, LINES.c.number.in_(numbers[at : at + PIECE]))
            sizes = select(LINES.c.number, LINES.c.body_bytes).where(*these, LINES.c.outcome.is_(None))
            async with self._db.reading() as session:
                found = (await session.execute(sizes.order_by(LINES.c.number))).all()
            for some in portions((row.number, row.body_bytes) for row in found):
                bodies = select(LINES.c.number, LINES.c.task_id, LINES.c.embeds, LINES.c.body).where(
                    LINES.c.batch == key, LINES.c.tenant == self._tenant, LINES.c.number.in_(some)
                )
                async with self._db.reading() as session:
                    rows = (await session.execute(bodies.order_by(LINES.c.number))).all()
                yield [Asked(*row) for row in rows]

    async def progress(
        self,
        batch_id: str,
        conductor: str,
        ended: Sequence[Ended],
        reach: Reach,
        *,
        now: datetime,
        forgives: bool = True,
    ) -> Batch:
        """Note in one transaction what has ended and how far the conductor is; a line's first outcome counts.

        `forgives`: deaths of conductors before this do not count any more where a line has ended. Raises
        TakenOver where it is not the conductor's any more.
        """
        async with self._db.writing() as session:
            row = await self._held(session, batch_id, conductor)
            open_ones = await open_numbers(session, row.key, [one.number for one in ended])
            fresh = [one for one in ended if one.number in open_ones]
            given: dict[str, Any] = {"seen_at": now} | reach._asdict()
            if fresh:
                await write_outcomes(session, row.key, fresh, now)
                given |= {"deaths": 0} if forgives else {}
                for outcome in {one.outcome for one in fresh}:
                    count = sum(one.outcome is outcome for one in fresh)
                    given[outcome.value] = getattr(row, outcome.value) + count
            await session.execute(update(BATCHES).where(self._is(batch_id)).values(given))
            return batch_of(await self._row(session, batch_id))

    async def close_rest(
        self, batch_id: str, conductor: str, outcome: LineOutcome, why: str, *, now: datetime
    ) -> int:
        """Give this outcome to a piece of the lines that have none; how many, 0 where none is left.

        Raises TakenOver.
        """
        async with self._db.writing() as session:
            row = await self._held(session, batch_id, conductor)
            return await close_some(session, row, outcome, why, now=now)

    # --- for who watches it, and reads its files ---

    async def lately(self, batch_id: str) -> list[datetime]:
        """When the last of its lines ended, by their place in the file: some hundreds, newest first."""
        row = select(BATCHES.c.key, BATCHES.c.published_to).where(self._is(batch_id))
        async with self._db.reading() as session:
            found = (await session.execute(row)).one_or_none()
            if found is None:
                return []
            # what lies behind was never published; of what was, at most a window is open
            last = (
                select(LINES.c.ended_at, LINES.c.outcome)
                .where(LINES.c.batch == found.key, LINES.c.tenant == self._tenant)
                .where(LINES.c.number <= found.published_to, LINES.c.outcome.is_not(None))
                .order_by(LINES.c.number.desc())
                .limit(PIECE)
            ).subquery()
            ran = last.c.outcome != LineOutcome.INVALID.value
            return list(await session.scalars(select(last.c.ended_at).where(ran)))

    async def ended(self, batch_id: str, *, errors: bool) -> AsyncIterator[EndedLine]:
        """Its lines with an outcome in the order of the file: those with a result, or those with an error."""
        key, after = await self._key(batch_id), 0
        done = LINES.c.outcome == LineOutcome.DONE.value
        wanted = LINES.c.outcome.is_not(None) & ~done if errors else done
        while True:
            sizes = (
                select(LINES.c.number, LINES.c.result_bytes)
                .where(LINES.c.batch == key, LINES.c.tenant == self._tenant, LINES.c.number > after, wanted)
                .order_by(LINES.c.number)
                .limit(PIECE)
            )
            async with self._db.reading() as session:
                found = (await session.execute(sizes)).all()
            if not found:
                return
            after = found[-1].number
            for some in portions((row.number, row.result_bytes) for row in found):
                rows = select(LINES).where(LINES.c.batch == key, LINES.c.number.in_(some))
                async with self._db.reading() as session:
                    lines = (await session.execute(rows.order_by(LINES.c.number))).all()
                for line in lines:
                    yield ended_line_of(line)

    # --- inside ---

    def _is(self, batch_id: str) -> Any:
        return (BATCHES.c.id == batch_id) & (BATCHES.c.tenant == self._tenant)

    async def _row(self, session: AsyncSession, batch_id: str, *, lock: bool = False) -> Any:
        asked = select(BATCHES).where(self._is(batch_id))
        return (await session.execute(asked.with_for_update() if lock else asked)).one_or_none()

    async def _held(self, session: AsyncSession, batch_id: str, conductor: str) -> Any:
        row = await self._row(session, batch_id, lock=True)
        if row is None or row.conductor != conductor:
            raise TakenOver
        return row

    async def _key(self, batch_id: str) -> int:
        async with self._db.reading() as session:
            key = await session.scalar(select(BATCHES.c.key).where(self._is(batch_id)))
        if key is None:
            raise TakenOver
        return int(key)
