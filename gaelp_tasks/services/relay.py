"""The relay: publishes what a request could not, notes what has ended, publishes again what Redis has lost.

Several at once are safe: a row is looked at by who has taken it, its first end counts, and a second message
of an id finds the answer of the first.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import unavailable
from gaelp_tasks.db.accepted import Outbox
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.history import History
from gaelp_tasks.errors import BrokerUnavailable, DatabaseUnavailable
from gaelp_tasks.failpoints import reach
from gaelp_tasks.line import open_line
from gaelp_tasks.models.acceptance import Acceptance, End, Standing
from gaelp_tasks.runtime import going_on
from gaelp_tasks.services.accepting import LEASE, LOOK, Purse, refusal, settle
from gaelp_tasks.tasks.accepted import ends, life_of, missing, send, stop

__all__ = ["PACES", "Paces", "Relay"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

AWAY = (BrokerUnavailable, DatabaseUnavailable, *unavailable)
AT_ONCE = 100  #: rows taken together; of results in one look about 8 MiB
AT_A_TIME = 25  #: ends in one transaction: each is paid for in it, and who submits waits for its end
PRUNE_S = 600.0
MOST_HEARD = 512


class Paces(NamedTuple):
    """How often, in seconds."""

    look: float = 0.25  #: between two questions whether something is due
    watch: float = 1.0  #: between two questions whether Redis is still the same
    soon: float = 0.5  #: until one is looked at again whose end was heard of, and not told yet
    longest: float = 60.0  #: between two looks at one
    audit: float = 30.0  #: between two searches for what Redis has lost
    settles: float = 2.0  #: a moving message is found at one of two looks with this between them
    trouble: float = 5.0  #: the longest wait for a Redis or a database that is away


PACES = Paces()


class Relay:
    """The relay of one process; `run` works until it is cancelled."""

    def __init__(
        self,
        app: GaelpApp,
        db: Database,
        *,
        keep_s: float,
        purse: Purse | None = None,
        paces: Paces = PACES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._app = app
        self._db = db
        self._outbox = Outbox(db)
        self._keep_s = keep_s
        self._purse = purse
        self._paces = paces
        self._now = now
        self._life = ""
        self._audited_at = monotonic()
        self._waits: dict[str, str] = {}  # work -> what it waits for

    async def run(self) -> None:
        """Do all of it; what is away is waited for."""
        async with asyncio.TaskGroup() as works:
            works.create_task(self._always(self._look, self._paces.look))
            works.create_task(self._always(self._watch, self._paces.watch))
            works.create_task(self._always(self._hear, self._paces.look))
            works.create_task(self._always(self._prune, PRUNE_S))

    async def _always(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        wait_s = pause_s
        while going_on():
            try:
                await work()
                self._is_well(work.__name__)
                wait_s = pause_s
            except AWAY as error:
                wait_s = min(self._paces.trouble, max(wait_s, 0.1) * 2)
                self._is_away(work.__name__, error)
            except Exception:
                wait_s = self._paces.trouble
                logger.exception("The relay goes on after an error of its own.")
            if going_on():
                await asyncio.sleep(wait_s)

    def _is_away(self, work: str, error: Exception) -> None:
        """Tell it once, however many works meet it, and however often."""
        what = "the database" if isinstance(error, DatabaseUnavailable) else "Redis"
        if what not in self._waits.values():
            logger.warning("The relay waits for %s: %s", what, error)
        self._waits[work] = what

    def _is_well(self, work: str) -> None:
        what = self._waits.pop(work, "")
        if what and what not in self._waits.values():
            logger.info("The relay has %s again.", what)

    # --- what is due ---

    async def _look(self) -> None:
        """Take what is due, as long as there is some."""
        while going_on() and await self._outbox.is_due(self._now()):
            now = self._now()
            rows = await self._outbox.take(now, now + LEASE, most=AT_ONCE)
            if not rows:
                return
            reach("relay:taken")
            there = [row for row in rows if row.standing is Standing.PUBLISHED]
            await self._note_ends(there)
            await self._publish([row for row in rows if row.standing is Standing.ACCEPTED])

    async def _publish(self, rows: Sequence[Acceptance]) -> None:
        stopped = [row.id for row in rows if row.cancelled_at is not None]
        if stopped:  # a run of one may go on where Redis has forgotten it
            await asyncio.to_thread(stop, self._app, stopped)
            await self._settle([End(name, Standing.CUT, "cancelled") for name in stopped])
        rows = [row for row in rows if row.cancelled_at is None]
        if not rows:
            return
        sent = await asyncio.to_thread(send, self._app, rows, again=True)
        reach("relay:published")
        now = self._now()
        await self._settle([refusal(name, error) for name, error in sent.refused.items()])
        there = [row for row in rows if row.id not in sent.refused]
        async with self._outbox.writing() as session:
            await self._outbox.published(
                session, [row.id for row in there], sent.life, now=now, next_at=now + LOOK
            )
            reach("relay:before the mark")
        reach("relay:marked")

    async def _note_ends(self, rows: Sequence[Acceptance]) -> None:
        """Of what is published: what has ended; the others are looked at again, the older the later."""
        if not rows:
            return
        told = await asyncio.to_thread(ends, self._app, [row.id for row in rows])
        await self._settle(told)
        over, now = {end.id for end in told}, self._now()
        await self._outbox.put_off({row.id: self._later(row, now) for row in rows if row.id not in over})

    def _later(self, row: Acceptance, now: datetime) -> datetime:
        age_s = (now - (row.published_at or row.created_at)).total_seconds()
        wait_s = min(self._paces.longest, max(LOOK.total_seconds(), age_s / 2))
        return now.replace(microsecond=0) + timedelta(seconds=wait_s)  # many share one statement

    async def _settle(self, told: Sequence[End]) -> None:
        for some in _pieces(told, AT_A_TIME):
            async with self._outbox.writing() as session:
                await settle(self._outbox, session, some, self._now(), self._purse)
                reach("relay:before the end")
            reach("relay:settled")

    # --- what is heard ---

    async def _hear(self) -> None:
        """Workers tell each end on its way to the history: what of it is ours is noted at once."""
        keys = self._app.keys
        async with aclosing(open_line(self._app.settings)) as line:
            [newest] = await line.ask(("XREVRANGE", keys.history, "+", "-", "COUNT", 1))
            after = newest[0][0] if newest and not isinstance(newest, Exception) else "0-0"
            while going_on():
                [reply] = await line.ask(
                    ("XREAD", "COUNT", MOST_HEARD, "BLOCK", 1000, "STREAMS", keys.history, after)
                )
                if isinstance(reply, Exception):
                    raise reply
                self._is_well(self._hear.__name__)
                if reply:
                    [(_, entries)] = reply
                    after = entries[-1][0]
                    await self.heard({name for _, fields in entries if (name := _id_in(fields))})

    async def heard(self, ids: Collection[str]) -> None:
        """These have ended; a result is stored a moment later."""
        left = await self._outbox.open_of(ids)
        for _ in range(3):
            if not left:
                return
            told = await asyncio.to_thread(ends, self._app, sorted(left))
            await self._settle(told)
            left -= {end.id for end in told}
            if left:
                await asyncio.sleep(0.02)
        soon = self._now() + timedelta(seconds=self._paces.soon)
        await self._outbox.put_off(dict.fromkeys(left, soon))

    # --- what is lost ---

    async def _watch(self) -> None:
        """Search for what Redis has lost: at once where it was emptied, else now and then."""
        life = await asyncio.to_thread(life_of, self._app)
        is_new = life != self._life
        if is_new or monotonic() - self._audited_at >= self._paces.audit:
            self._audited_at = monotonic()
            await self.audit(life)
            self._life = life

    async def audit(self, life: str) -> None:
        """Have what was published and is nowhere any more published again."""
        before = self._now() - timedelta(seconds=self._paces.settles)
        there = await self._outbox.in_redis(before=before, life=life)
        gone = await self._nowhere(there)
        if not gone:
            return
        await asyncio.sleep(self._paces.settles)
        gone = await self._nowhere(gone)
        told = await self._remembered(gone)
        await self._settle(told)
        left = gone - {end.id for end in told}
        if lost := await self._outbox.lost(left, self._now(), before=before, life=life):
            logger.warning("Redis has lost %d accepted invocations: they are published again.", lost)

    async def _nowhere(self, ids: Collection[str]) -> set[str]:
        """Those without a message, a run or a result."""
        if not ids:
            return set()
        found = await asyncio.to_thread(missing, self._app, ids)
        for some in _pieces(sorted(found), AT_ONCE):
            told = await asyncio.to_thread(ends, self._app, some)
            await self._settle(told)
            found -= {end.id for end in told}
        return found

    async def _remembered(self, ids: Collection[str]) -> list[End]:
        """The ends that the history still knows where Redis has forgotten them."""
        history = History(self._db, None)
        found: list[End] = []
        for name in sorted(ids):
            rows = await history.find(name, most=1)
            found += [
                End(name, Standing(row.state), row.stop_reason, row.error) for row in rows if row.id == name
            ]
        return found

    async def _prune(self) -> None:
        if self._keep_s:
            await self._outbox.prune(self._now() - timedelta(seconds=self._keep_s))


def _id_in(fields: Sequence[str]) -> str:
    """The id in an entry of the history; '' where it cannot be read."""
    try:
        told: Mapping[str, Any] = json.loads(fields[1])
        return str(told["id"])
    except (ValueError, LookupError, TypeError):
        return ""


def _pieces(things: Sequence[T], most: int) -> Iterable[Sequence[T]]:
    return (things[at : at + most] for at in range(0, len(things), most))
