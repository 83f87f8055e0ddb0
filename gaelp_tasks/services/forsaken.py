"""What is held for work that is over or gone is given back: found by its key, asked of the table of the work.

Whoever ends work settles or releases in the same transaction, so there is nothing to find. Should a release
forget it, or a row be deleted by hand, nobody's budget or quota stays smaller for ever.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.holders import (
    BUDGET_HOLDERS,
    QUOTA_HOLDERS,
    Held,
    Holder,
    budget_holds,
    lock_budget_hold,
    lock_quota_hold,
    quota_holds,
)
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.services import budgets, quotas
from gaelp_tasks.services.place import At

__all__ = ["Found", "give_back", "watch"]

logger = logging.getLogger(__name__)

EVERY_S = 60.0
OLD = timedelta(seconds=60)  #: what was held later than this is not looked at
AT_ONCE = 200


class Found(NamedTuple):
    """How many holds were given back."""

    budgets: int
    quotas: int


async def give_back(
    db: Database,
    *,
    budget_holders: Mapping[str, Holder] = BUDGET_HOLDERS,
    quota_holders: Mapping[str, Holder] = QUOTA_HOLDERS,
    old: timedelta = OLD,
    now: datetime | None = None,
) -> Found:
    """Void and release what nobody holds any more. Raises DatabaseUnavailable."""
    before = (now or datetime.now(UTC)) - old
    money = _Kind(partial(budget_holds, before=before), lock_budget_hold, budget_holders, budgets.void)
    room = _Kind(partial(quota_holds, before=before), lock_quota_hold, quota_holders, quotas.release)
    voided, released = await _each(db, money), await _each(db, room)
    if voided or released:
        logger.warning("Gave back %d budget holds and %d quota holds of work that is gone.", voided, released)
    return Found(voided, released)


class _Kind(NamedTuple):
    listed: Callable[..., Awaitable[list[Held]]]
    lock: Callable[[Session, Held], Awaitable[None]]
    holders: Mapping[str, Holder]
    end: Callable[..., Awaitable[bool]]


async def _each(db: Database, kind: _Kind) -> int:
    after, count = 0, 0
    while True:
        async with db.reading() as session:
            held = await kind.listed(session, after=after, most=AT_ONCE)
            gone = await _gone(session, held, kind.holders)
        for one in gone:
            async with db.writing() as session:
                # it may be held anew meanwhile: who holds changes both in one transaction
                await kind.lock(session, one)
                if await _gone(session, [one], kind.holders):
                    count += await kind.end(session, one.key, tenant=one.tenant)
        if len(held) < AT_ONCE:
            return count
        after = held[-1].id


async def _gone(session: Session, held: list[Held], holders: Mapping[str, Holder]) -> list[Held]:
    """Those of these whose holder says nothing of them."""
    found: list[Held] = []
    for kind, holder in holders.items():
        mine = {one.key.partition(":")[2]: one for one in held if one.key.startswith(f"{kind}:")}
        if mine:
            there = await holder(session, mine.keys())
            found += [one for name, one in mine.items() if name not in there]
    return found


async def watch(at: At) -> None:
    """Look now and then, until cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            await give_back(at.db)
        except DatabaseUnavailable as error:
            logger.warning("What is held for nobody is looked for later: %s", error)
