"""Batches for who asks over HTTP: a file is laid on disk as it comes, and read into SQL a piece at a time."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from gaelp_tasks.db.batches import Batches
from gaelp_tasks.errors import BrokerUnavailable, Conflict, DatabaseUnavailable, NotFound
from gaelp_tasks.models.batch import Batch, BatchState, id_under
from gaelp_tasks.models.batch_file import Defaults, record
from gaelp_tasks.models.batch_work import TakenOver
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.schedule import Hours
from gaelp_tasks.services.batch_bills import Payer, settle
from gaelp_tasks.services.batches import as_json, begin, cancel, pieces
from gaelp_tasks.services.place import At
from gaelp_tasks.tasks.batch import call_for

__all__ = ["BatchDesk"]

logger = logging.getLogger(__name__)

WRITE_BYTES = 1024**2  #: gathered before it goes to disk, on another thread
TELL_BYTES = 64 * 1024  #: of results in one piece of an answer
INTERRUPTED = "Its submission was interrupted: submit the file again."


def _now() -> datetime:
    return datetime.now(UTC)


class BatchDesk:
    """The batches of a tenant. Methods raise DatabaseUnavailable, and NotFound for ids of others."""

    def __init__(self, at: At, caller: Caller, tenant: str) -> None:
        self._at = at
        self._caller = caller
        self._tenant = tenant
        self._rows = Batches(at.db, tenant)

    async def submit(
        self,
        chunks: AsyncIterator[bytes],
        defaults: Defaults,
        *,
        name: str = "",
        within_s: float | None = None,
        hours: Hours | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Take a file in and have it worked off; nothing of one that breaks off is run.

        Who has a budget pays from it. Under an idempotency `key` there is one, whatever its file is; one that
        failed makes way. Raises Conflict where it is just being made or somebody else's, BudgetExceeded.
        """
        batch_id = None if key is None else id_under(key, self._tenant)
        if batch_id is not None and (there := await self._under(batch_id)) is not None:
            return there.facts(_now())
        payer = Payer(self._at.db, self._at.settings, self._caller.name)
        await payer.look(self._tenant)
        with TemporaryFile("w+b") as file:
            await _fill(file, chunks)
            batch = await self._rows.create(
                tier=defaults.tier,
                name=name,
                now=_now(),
                hours=hours,
                batch_id=batch_id,
                owner=self._caller.name,
            )
            try:
                batch = await self._take_in(batch, file, defaults, payer, within_s)
            except BaseException as error:
                why = str(error) if isinstance(error, Exception) else INTERRUPTED
                with suppress(DatabaseUnavailable, TakenOver):  # then beat gives it up, within the hour
                    await asyncio.shield(self._rows.abandon(batch.id, why, now=_now()))
                raise
        if batch.state is BatchState.IN_PROGRESS:
            await self._call(batch, 0)
        return batch.facts(_now())

    async def _under(self, batch_id: str) -> Batch | None:
        """The one that is there, and has not failed."""
        for batch in await self._rows.find(batch_id):
            if batch.owner not in {"", self._caller.name}:
                raise Conflict(f"This Idempotency-Key stands for a batch of {batch.owner}: take another key.")
            if batch.state is not BatchState.FAILED:
                return batch
            await self._remove(batch_id)
        return None

    async def _take_in(
        self, batch: Batch, file: BinaryIO, defaults: Defaults, payer: Payer, within_s: float | None
    ) -> Batch:
        found = pieces(file, defaults, self._at.app.settings)
        try:
            while (piece := await asyncio.to_thread(next, found, None)) is not None:
                lines, bounds = await asyncio.to_thread(payer.shaped, piece)
                await self._rows.add(batch.id, lines, now=_now())
                await payer.keep(batch.id, bounds)
        except TakenOver:  # it was cancelled meanwhile
            return await self._find(batch.id)
        return await begin(self._rows, batch.id, within_s=within_s, beside=payer.hold)

    async def _call(self, batch: Batch, ticket: int) -> None:
        """Have a worker begin; where Redis has gone, beat will."""
        try:
            await asyncio.to_thread(call_for, batch.id, batch.tenant, ticket)
        except BrokerUnavailable as error:
            logger.warning("Batch %s waits for beat: %s", batch.id, error)

    async def show(self, batch_id: str) -> dict[str, Any]:
        """How far one is."""
        return await self._facts(await self._find(batch_id))

    async def listed(self, *, most: int, skip: int) -> list[dict[str, Any]]:
        """The newest first; without the time that is left, which takes a look into each."""
        return [batch.facts(_now()) for batch in await self._rows.newest(most, skip)]

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        """Stop one: what has ended is kept. Raises NotAllowed, Conflict where it is over."""
        batch = await self._own(batch_id)
        ticket = await cancel(self._rows, batch, now=_now())
        if ticket is not None:
            await self._call(batch, ticket)
        return (await self._find(batch_id)).facts(_now())

    async def remove(self, batch_id: str) -> None:
        """Delete one that is over, with its texts. Raises NotAllowed, Conflict."""
        batch = await self._own(batch_id)
        if not await self._remove(batch.id):
            raise Conflict(f"It is {batch.state}: cancel it first.")

    async def _remove(self, batch_id: str) -> bool:
        """False where it is not over; what it has cost is settled before."""
        await settle(self._at.db, self._at.settings, batch_id)
        return await self._rows.remove(batch_id)

    async def results(self, batch_id: str, *, errors: bool) -> AsyncIterator[bytes]:
        """Those so far as JSONL, in the order of the file; or its errors."""
        batch = await self._find(batch_id)
        return self._told(batch, errors=errors)

    async def _told(self, batch: Batch, *, errors: bool) -> AsyncIterator[bytes]:
        gathered = bytearray()
        async for line in self._rows.ended(batch.id, errors=errors):
            gathered += as_json(record(line)).encode() + b"\n"
            if len(gathered) >= TELL_BYTES:
                yield bytes(gathered)
                gathered.clear()
        if gathered:
            yield bytes(gathered)

    async def _facts(self, batch: Batch) -> dict[str, Any]:
        going_on = batch.state is BatchState.IN_PROGRESS
        return batch.facts(_now(), await self._rows.lately(batch.id) if going_on else ())

    async def _own(self, batch_id: str) -> Batch:
        batch = await self._find(batch_id)
        self._caller.must_own(batch.owner)
        return batch

    async def _find(self, batch_id: str) -> Batch:
        found = [batch for batch in await self._rows.find(batch_id) if batch.id == batch_id]
        if not found:
            raise NotFound(f"There is no batch {batch_id}.")
        return found[0]


async def _fill(file: BinaryIO, chunks: AsyncIterator[bytes]) -> None:
    gathered = bytearray()
    async for chunk in chunks:
        gathered += chunk
        if len(gathered) >= WRITE_BYTES:
            await asyncio.to_thread(file.write, bytes(gathered))
            gathered.clear()
    file.write(gathered)
    file.seek(0)
