"""A small batch now and then, on a thread with a loop of its own; each is read when it is over."""

import asyncio
import io
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from faults.history.model_server import prompt
from faults.soak.clients import PACE_S, Wrong, tried, whole
from faults.soak.plan import Plan
from faults.soak.record import BatchEnd, Try
from gaelp_tasks import app
from gaelp_tasks.db.batches import Batches as Kept
from gaelp_tasks.db.database import Database
from gaelp_tasks.errors import BrokerUnavailable, DatabaseUnavailable
from gaelp_tasks.models.batch import BatchState
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import take_in, write_out
from gaelp_tasks.tasks.batch import call_for

__all__ = ["Batches"]

LOOK_S = 1.0
TOKENS = 5  #: of a line's answer


@dataclass(slots=True)
class Sent:
    """One that was begun to be submitted."""

    number: int
    id: str
    accepted: bool = False
    end: BatchEnd | None = None

    def names(self, lines: int) -> list[str]:
        """What the journal of the model servers calls its lines."""
        return [f"batch-{self.number}-{line}" for line in range(lines)]


class Batches:
    """`with Batches(plan, url) as batches:` submits until it is told to `rest`; `idle` once all are over."""

    def __init__(self, plan: Plan, url: str) -> None:
        self.tries: list[Try] = []
        self.sent: list[Sent] = []
        self.results: dict[tuple[int, int], str] = {}  #: batch and line -> the text
        self._every_s, self._lines, self._url = plan.batch_every_s, plan.batch_lines, url
        self._resting, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), name="batches", daemon=True)

    @property
    def idle(self) -> bool:
        """All that were accepted are over."""
        return not self._thread.is_alive() or all(one.end for one in self.sent if one.accepted)

    @property
    def ends(self) -> list[BatchEnd]:
        """What became of each that was accepted."""
        never = [BatchEnd(one.id, self._lines, "not over", "it never ended") for one in self._open()]
        return [one.end for one in self.sent if one.end] + never

    def rest(self) -> None:
        """Submit nothing more."""
        self._resting.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()
        self._over.set()
        self._thread.join()

    def _open(self) -> list[Sent]:
        return [one for one in self.sent if one.accepted and one.end is None]

    async def _work(self) -> None:
        db = Database(self._url)
        kept = Kept(db)
        due = time.monotonic()
        while not self._over.is_set():
            if not self._resting.is_set() and time.monotonic() >= due:
                due = max(due + self._every_s, time.monotonic())
                await self._submit(kept)
            for one in self._open():
                with suppress(DatabaseUnavailable):
                    await self._look(kept, one)
            await asyncio.sleep(LOOK_S)
        await db.close()

    async def _submit(self, kept: Kept) -> None:
        with tried(self.tries, "batch submit"):
            made = await kept.create(tier=Tier.BATCH, name="", now=datetime.now(UTC))
            one = Sent(len(self.sent), made.id)
            self.sent.append(one)
            lines = (
                json.dumps({"custom_id": f"c{number}", "prompt": prompt(name, TOKENS, PACE_S)})
                for number, name in enumerate(one.names(self._lines))
            )
            await take_in(kept, made, io.BytesIO("\n".join(lines).encode()), Defaults(), app.settings)
            one.accepted = True  # it is in SQL: beat calls for it where the call below is not heard
            with suppress(BrokerUnavailable):
                await asyncio.to_thread(call_for, made.id, "", 0)

    async def _look(self, kept: Kept, one: Sent) -> None:
        [batch] = await kept.find(one.id)
        if not batch.is_over:
            return
        trouble = "" if batch.state is BatchState.COMPLETED else batch.trouble or batch.state.value
        results = None
        with tried(self.tries, "batch results"):
            out = io.StringIO()
            await write_out(kept, batch, out, errors=False)
            results = [json.loads(line) for line in out.getvalue().splitlines()]
            trouble = trouble or wrong(results, self._lines)
            if trouble:
                raise Wrong(trouble)
        if results is None:
            return  # the database is away: a read has failed, and there will be another
        for number, line in enumerate(results):
            self.results[one.number, number] = line["result"]["text"]
        one.end = BatchEnd(one.id, self._lines, batch.state.value, trouble)

    def ids(self) -> dict[str, str]:
        """What the journal calls each line of all batches -> its task's id; ask once it is over."""
        return asyncio.run(self._ids())

    async def _ids(self) -> dict[str, str]:
        db = Database(self._url)
        found = {}
        for one in self.sent:
            names = one.names(self._lines)
            async for lines in Kept(db).published(one.id, after=0, to=self._lines):
                found.update({names[line.number - 1]: line.task_id for line in lines})
        await db.close()
        return found


def wrong(results: list[dict[str, Any]], lines: int) -> str:
    """What is wrong with the results of a batch; '' where each line is there once, in order and whole."""
    ids = [line["custom_id"] for line in results]
    if ids != [f"c{number}" for number in range(lines)]:
        return f"{len(ids)} results of {lines}, {len(set(ids))} different, or out of order"
    for line in results:
        try:
            whole(line["result"]["text"], TOKENS)
        except Wrong as error:
            return f"{line['custom_id']}: {error}"
    return ""
