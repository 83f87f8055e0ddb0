"""Accepted invocations as their owners see them: what the database has, and what Redis adds to it."""

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.db.accepted import ANY, Accepted, Which
from gaelp_tasks.db.database import Database
from gaelp_tasks.errors import BrokerUnavailable, NotFound
from gaelp_tasks.lifecycle import State
from gaelp_tasks.models.acceptance import Acceptance
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.overview import Description, View, describe_all, view
from gaelp_tasks.tasks.accepted import states_of, stop

__all__ = ["Invocations"]

LOOK_EVERY_S = 0.2  #: at the queues, for all who ask in between
MOST_AT_ONCE = 50  #: invocations in one round trip; results may be long
PAUSE = 10  #: times as long as a look took, at least, until the next
ENDED = frozenset({State.DONE, State.CUT, State.FAILED})
AWAY = "Redis does not answer; it goes on once that is back."

_looks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[GaelpApp, "_Looks"]] = WeakKeyDictionary()


class _Looks:
    """At the queues of this process' Redis: they may be long, and many may ask where they stand.

    Who asks while others are being answered is answered with the next, in the same round trips.
    """

    def __init__(self, app: GaelpApp) -> None:
        self._app = app
        self._asked: dict[str, asyncio.Future[Description]] = {}
        self._work: asyncio.Task[None] | None = None
        self._last: View | None = None
        self._until_s = 0.0

    async def describe(self, invocation_id: str) -> Description:
        """Raises BrokerUnavailable."""
        loop = asyncio.get_running_loop()
        told = self._asked.setdefault(invocation_id, loop.create_future())
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._answer())
        return await asyncio.shield(told)

    async def _answer(self) -> None:
        while self._asked:
            asked = dict(islice(self._asked.items(), MOST_AT_ONCE))
            for name in asked:
                del self._asked[name]
            try:
                found = await asyncio.to_thread(self._look, list(asked))
            except Exception as error:  # noqa: BLE001  whoever has asked gets it
                for told in asked.values():
                    told.set_exception(error)
            else:
                for told, description in zip(asked.values(), found, strict=True):
                    told.set_result(description)

    def _look(self, ids: list[str]) -> list[Description]:
        begun = monotonic()
        if self._last is None or begun >= self._until_s:
            self._last = view(self._app)
            self._until_s = monotonic() + max(LOOK_EVERY_S, PAUSE * (monotonic() - begun))
        return describe_all(self._app, ids, self._last)


class Invocations:
    """Those that the caller sees. Methods raise DatabaseUnavailable."""

    def __init__(self, app: GaelpApp, db: Database, caller: Caller) -> None:
        self._app = app
        self._caller = caller
        self._rows = Accepted(db, caller.scope)

    async def row(self, invocation_id: str) -> Acceptance:
        """The one of this id. Raises NotFound."""
        found = await self._rows.find(invocation_id)
        if found is None:
            raise NotFound(f"There is no invocation {invocation_id}.")
        return found

    async def show(self, invocation_id: str) -> dict[str, Any]:
        """All that is known of one. Raises NotFound."""
        row = await self.row(invocation_id)
        facts = facts_of(row)
        if row.is_over:
            return facts
        looks = _looks.setdefault(asyncio.get_running_loop(), {}).setdefault(self._app, _Looks(self._app))
        try:
            seen = await looks.describe(row.id)
        except BrokerUnavailable:
            return facts | {"why": AWAY}
        return facts | _seen(seen)

    async def listed(self, which: Which = ANY, *, most: int, skip: int = 0) -> list[dict[str, Any]]:
        """Up to `most` of them, the newest first, after `skip`; without results and places."""
        rows = await self._rows.listed(which, most=most, skip=skip)
        told: dict[str, State] = {}
        with suppress(BrokerUnavailable):
            told = await asyncio.to_thread(states_of, self._app, [row.id for row in rows if not row.is_over])
        found = [facts_of(row) | ({"state": told[row.id].value} if row.id in told else {}) for row in rows]
        for facts in found:
            for name in ("result", "position", "why"):
                del facts[name]
        return found

    async def cancel(self, invocation_id: str) -> dict[str, Any]:
        """Have it stop, queued or running; what is over stays as it is. Raises NotFound, NotAllowed."""
        self._caller.must_own((await self.row(invocation_id)).owner)
        row = await self._rows.cancel(invocation_id, datetime.now(UTC))
        if row is None:
            raise NotFound(f"There is no invocation {invocation_id}.")
        if not row.is_over:
            with suppress(BrokerUnavailable):  # the relay asks again
                await asyncio.to_thread(stop, self._app, [row.id])
        return facts_of(row)


def facts_of(row: Acceptance) -> dict[str, Any]:
    """What the database tells; of what is not over the state is a guess."""
    return {
        "id": row.id,
        "state": row.standing.value if row.is_over else State.QUEUED.value,
        "tenant": row.tenant,
        "owner": row.owner,
        "agent": row.agent,
        "model": row.model or None,
        "tier": row.tier,
        "priority": row.priority,
        "agent_id": row.agent_id,
        "budget_micro": row.budget_micro,
        "cancelled": row.cancelled_at is not None,
        "created_at": row.created_at.isoformat(),
        "ended_at": None if row.ended_at is None else row.ended_at.isoformat(),
        "stop_reason": row.stop_reason or None,
        "error": row.error or None,
        "position": None,
        "why": None,
        "result": json.loads(row.result) if row.result else None,
    }


def _seen(seen: Description) -> dict[str, Any]:
    """What Redis tells of one that is not over in the database."""
    if seen.state is State.UNKNOWN:
        return {"why": "It is on its way to the queue."}
    more: dict[str, Any] = {"state": seen.state.value, "why": seen.why or None}
    if seen.place is not None:
        more["position"] = {"queue": seen.place.queue, "number": seen.place.position}
    if seen.state in ENDED:
        more |= {"result": seen.result, "error": seen.error or None}
        more["stop_reason"] = (seen.result or {}).get("stop_reason")
    return more
