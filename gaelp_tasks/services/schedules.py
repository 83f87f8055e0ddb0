"""Schedules for who asks over HTTP: as on the command line, but for what may be scheduled."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import unavailable, worded
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.schedules import Kept, Schedules
from gaelp_tasks.errors import NotAllowed, NotFound
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.services.budgets import refuse_unpaid
from gaelp_tasks.tasks.scheduled import check, publish
from gaelp_tasks.upcoming import facts_of

__all__ = ["Timetables"]

T = TypeVar("T")
SHOWN = 5  #: due times of one that is shown


def _now() -> datetime:
    return datetime.now(UTC)


class Timetables:
    """The schedules of a tenant. Methods raise DatabaseUnavailable, NotFound, InvalidSchedule."""

    def __init__(self, app: GaelpApp, db: Database, caller: Caller, tenant: str) -> None:
        self._app = app
        self._db = db
        self._rows = Schedules(db, tenant)
        self._tenant = tenant
        self._caller = caller

    async def listed(self, *, most: int, skip: int) -> list[dict[str, Any]]:
        """Some of them by name, each with its next due time."""
        return [facts_of(kept, 1) for kept in (await self._rows.listed())[skip : skip + most]]

    async def show(self, name: str) -> dict[str, Any]:
        """One with its next due times."""
        return facts_of(_there(await self._rows.find(name), name), SHOWN)

    async def add(self, schedule: Schedule) -> dict[str, Any]:
        """Keep a new one. Raises NotAllowed, PolicyViolated; InvalidInvocation if runs would be refused."""
        await self._check(schedule)
        return facts_of(await self._rows.add(schedule, _now(), owner=self._caller.name), SHOWN)

    async def edit(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change what is given and leave the rest; None takes a value away. Raises as `add`."""
        kept = await self._own(name)
        given = {**kept.schedule.wire(), **changes}
        changed = Schedule.parse({field: value for field, value in given.items() if value is not None})
        await self._check(changed)
        return facts_of(_there(await self._rows.change(name, changed, _now()), name), SHOWN)

    async def pause(self, name: str, *, paused: bool) -> dict[str, Any]:
        """Have nothing more of it published, or go on. Raises NotAllowed, where it is to go on as `run`."""
        kept = await self._own(name)
        if not paused:
            await self._check(kept.schedule)
        return facts_of(_there(await self._rows.pause(name, _now(), paused=paused), name), SHOWN)

    async def remove(self, name: str) -> None:
        """Forget it; what it has published goes on. Raises NotAllowed."""
        await self._own(name)
        removed = _there(await self._rows.remove(name), name)
        with suppress(*unavailable):  # then one field too many is left there
            await asyncio.to_thread(self._app.redis.hdel, self._app.keys.beat_published, str(removed))

    async def run(self, name: str) -> str:
        """Publish a run at once, paused or not; its id. Raises as `add`, and BrokerUnavailable."""
        kept, task_id = await self._own(name), str(uuid4())
        await self._check(kept.schedule)

        def send() -> None:
            with worded(self._app.settings):
                self._app.redis.ping()
            publish(self._app, kept.schedule, self._tenant, task_id, _now())

        await asyncio.to_thread(send)
        await self._rows.ran(name, task_id)
        return task_id

    async def _own(self, name: str) -> Kept:
        """The one that the caller may change. Raises NotFound, NotAllowed."""
        kept = _there(await self._rows.find(name), name)
        self._caller.must_own(kept.owner)
        return kept

    async def _check(self, schedule: Schedule) -> None:
        if not self._caller.role.covers(Role.ADMIN) and (not schedule.calls_model or schedule.queue):
            raise NotAllowed(
                "task: only an admin schedules other tasks than invocations and embeddings, or names a queue."
            )
        check(self._app, schedule)
        await refuse_unpaid(self._db, self._caller, self._tenant, "Schedules")


def _there(found: T | None, name: str) -> T:
    if found is None:
        raise NotFound(f"There is no schedule {name!r}.")
    return found
