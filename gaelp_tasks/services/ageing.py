"""What is older than a setting says goes, some at a time: no transaction keeps the others out for long."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from gaelp_tasks.db.database import Database, Session

__all__ = ["throw_away"]

#: throws some away that are older than this moment, and says how many
Some = Callable[[Session, datetime], Awaitable[int]]


async def throw_away(db: Database, keep_s: float, some: Some, *, now: datetime | None = None) -> int:
    """Ask for some, each time in a transaction of its own, until there are none; how many these were.

    `keep_s` 0: nothing is ever too old. Raises DatabaseUnavailable.
    """
    if not keep_s:
        return 0
    before, thrown = (now or datetime.now(UTC)) - timedelta(seconds=keep_s), 0
    while True:
        async with db.writing() as session:
            gone = await some(session, before)
        if not gone:
            return thrown
        thrown += gone
