"""Who may hold money and quotas, by the key of a hold: what is over or gone holds nothing."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select

from gaelp_tasks.db.accepted import ROWS, STILL_OPEN
from gaelp_tasks.db.batch_rows import BATCHES, BILLS
from gaelp_tasks.db.database import Session
from gaelp_tasks.db.job_rows import JobRow
from gaelp_tasks.db.money_rows import HOLDS
from gaelp_tasks.db.quotas import HELD, QUOTAS
from gaelp_tasks.models.money import HoldState
from gaelp_tasks.models.training import ENDED

__all__ = [
    "BUDGET_HOLDERS",
    "QUOTA_HOLDERS",
    "Held",
    "Holder",
    "budget_holds",
    "lock_budget_hold",
    "lock_quota_hold",
    "quota_holds",
]

#: of these ids, in a session, those that may still hold something
Holder = Callable[[Session, Collection[str]], Awaitable[set[str]]]


class Held(NamedTuple):
    """One hold."""

    id: int
    tenant: str
    key: str


async def budget_holds(session: Session, *, before: datetime, after: int, most: int) -> list[Held]:
    """Up to `most` that are neither settled nor void, made before this moment, with ids above `after`."""
    columns = (HOLDS.c.id, HOLDS.c.tenant, HOLDS.c.key)
    mine = (HOLDS.c.state == HoldState.HELD.value, HOLDS.c.held_at < before, HOLDS.c.id > after)
    rows = await session.execute(select(*columns).where(*mine).order_by(HOLDS.c.id).limit(most))
    return [Held(*row) for row in rows]


async def quota_holds(session: Session, *, before: datetime, after: int, most: int) -> list[Held]:
    """The same of quotas."""
    columns = (HELD.c.id, HELD.c.tenant, HELD.c.key)
    mine = (HELD.c.held_at < before, HELD.c.id > after)
    rows = await session.execute(select(*columns).where(*mine).order_by(HELD.c.id).limit(most))
    return [Held(*row) for row in rows]


async def lock_budget_hold(session: Session, held: Held) -> None:
    """Nobody settles or voids it before this transaction is over."""
    await session.execute(select(HOLDS.c.id).where(HOLDS.c.id == held.id).with_for_update())


async def lock_quota_hold(session: Session, held: Held) -> None:
    """Nobody takes from its quota, or gives back, before this transaction is over."""
    of = select(HELD.c.quota).where(HELD.c.id == held.id).scalar_subquery()
    await session.execute(select(QUOTAS.c.id).where(QUOTAS.c.id == of).with_for_update())


async def _jobs(session: Session, ids: Collection[str]) -> set[str]:
    numbers = [int(name) for name in ids if name.isascii() and name.isdecimal()]
    going = JobRow.state.not_in([state.value for state in ENDED])
    asked = select(JobRow.id).where(JobRow.id.in_(numbers), going)
    return {str(found) for found in await session.scalars(asked)}


async def _admitted_jobs(session: Session, ids: Collection[str]) -> set[str]:
    numbers = [int(name) for name in ids if name.isascii() and name.isdecimal()]
    there = (JobRow.id.in_(numbers), JobRow.admitted_at.is_not(None))
    going = JobRow.state.not_in([state.value for state in ENDED])
    return {str(found) for found in await session.scalars(select(JobRow.id).where(*there, going))}


async def _invocations(session: Session, ids: Collection[str]) -> set[str]:
    named = {name: name.partition("@")[0] for name in ids}  # behind it is when it was accepted
    there = set(await session.scalars(select(ROWS.c.id).where(ROWS.c.id.in_(named.values()), STILL_OPEN)))
    return {name for name, found in named.items() if found in there}


async def _batches(session: Session, ids: Collection[str]) -> set[str]:
    named = {name: name.partition("@")[0] for name in ids}  # behind it is when it was made
    asked = select(BATCHES.c.id).join(BILLS, BILLS.c.batch == BATCHES.c.key)
    there = set(await session.scalars(asked.where(BATCHES.c.id.in_(named.values()))))
    return {name for name, found in named.items() if found in there}


#: by what stands before the colon of a key; a hold of a kind that is not here is left alone
BUDGET_HOLDERS: Mapping[str, Holder] = {"job": _jobs, "invocation": _invocations, "batch": _batches}
QUOTA_HOLDERS: Mapping[str, Holder] = {"job": _admitted_jobs}
