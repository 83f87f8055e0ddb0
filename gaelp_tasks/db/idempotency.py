"""Requests under an idempotency key: done once, and answered again as the first time.

Who answers has a turn, which he keeps by renewing it. Whatever his transactions change notes in each of them
that the request was done, and what it has made; who has lost his turn is refused there, and changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Integer,
    LargeBinary,
    String,
    and_,
    delete,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, JsonText, UtcTime
from gaelp_tasks.db.database import Database, Session, before_commit
from gaelp_tasks.errors import Conflict
from gaelp_tasks.failpoints import reach
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.caller import LONGEST_USER, Caller

__all__ = ["LONGEST_KEY", "Begun", "IdempotentRequests", "Turn", "forget", "note_made"]

LONGEST_KEY = 255  #: characters
AT_ONCE = 1000  #: rows of one clearing
MADE = "gaelp.made"  #: in a session's info
OVERTAKEN = "This request took too long: another one under its Idempotency-Key does it by now."


class IdempotentRow(Base):
    """What a key of a user stands for."""

    __tablename__ = "idempotent_requests"

    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT), primary_key=True)
    user: Mapped[str] = mapped_column(String(LONGEST_USER), primary_key=True)
    key: Mapped[str] = mapped_column(String(LONGEST_KEY), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))  #: of method, path and body
    begun_at: Mapped[datetime] = mapped_column(UtcTime, index=True)
    status: Mapped[int | None] = mapped_column(Integer)  #: None until it was answered
    headers: Mapped[Any | None] = mapped_column(JsonText)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)  #: None: too long to be kept
    turn: Mapped[int] = mapped_column(Integer, server_default="1")
    until: Mapped[datetime | None] = mapped_column(UtcTime)  #: when the turn ends that nobody renews
    done: Mapped[bool] = mapped_column(Boolean, server_default=true())  #: something was committed
    made: Mapped[str] = mapped_column(String(300), server_default="")  #: as routes name it


class Begun(NamedTuple):
    """What somebody began before under the same key."""

    digest: str
    status: int | None
    headers: list[list[str]]
    body: bytes | None
    turn: int
    until: datetime | None
    done: bool
    made: str

    def is_left(self, now: datetime) -> bool:
        """Nobody answers it any more, and nobody has."""
        return self.status is None and (self.until is None or self.until <= now)


class Turn(NamedTuple):
    """Somebody's, to answer what is under a key."""

    key: str
    number: int
    made: str  #: by one before; it need only be shown. '' where nothing was done yet


class IdempotentRequests:
    """Those of one caller."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self._db = db
        self._caller = caller

    async def begin(self, key: str, digest: str, now: datetime, *, until: datetime) -> Turn | Begun:
        """The turn to do it, or what somebody else has begun; of many at once one has the turn.

        It is what was begun that is done again where nothing came of it. Raises DatabaseUnavailable.
        """
        while True:
            found = await self._find(key)
            if found is None:
                if await self._first(key, digest, now, until):
                    return Turn(key, 1, "")
            elif found.digest != digest or not found.is_left(now) or (found.done and not found.made):
                return found
            elif await self._take(key, found, until):
                return Turn(key, found.turn + 1, found.made)

    async def _first(self, key: str, digest: str, now: datetime, until: datetime) -> bool:
        row = IdempotentRow(
            tenant=self._caller.tenant,
            user=self._caller.name,
            key=key,
            digest=digest,
            begun_at=now,
            turn=1,
            until=until,
            done=False,
            made="",
        )
        try:
            async with self._db.writing(aside=True) as session:
                session.add(row)
        except IntegrityError:  # somebody else was faster
            return False
        return True

    async def _take(self, key: str, found: Begun, until: datetime) -> bool:
        """False where somebody else was faster, or it was done meanwhile."""
        left = self._mine(key) & (IdempotentRow.turn == found.turn) & IdempotentRow.status.is_(None)
        taken = update(IdempotentRow).where(left, IdempotentRow.done.is_(found.done))
        return await self._changed(taken.values(turn=found.turn + 1, until=until))

    async def _find(self, key: str) -> Begun | None:
        async with self._db.reading() as session:
            row = (await session.scalars(select(IdempotentRow).where(self._mine(key)))).one_or_none()
        if row is None:
            return None
        answered = (row.status, row.headers or [], row.body)
        return Begun(row.digest, *answered, row.turn, row.until, row.done, row.made)

    @contextmanager
    def doing(self, turn: Turn) -> Iterator[None]:
        """Each transaction notes meanwhile that the request was done, and raises Conflict without a turn."""
        is_on = True

        async def note(session: Session) -> None:
            if not is_on:  # a task that outlives the request
                return
            given: dict[str, Any] = {"done": True}
            if made := session.info.get(MADE):
                given["made"] = made
            noted: Any = await session.execute(update(IdempotentRow).where(self._ours(turn)).values(given))
            if not noted.rowcount:
                raise Conflict(OVERTAKEN)
            reach("replay:noted")

        before = before_commit.set(note)
        try:
            yield
        finally:
            is_on = False
            before_commit.reset(before)

    async def renew(self, turn: Turn, until: datetime) -> bool:
        """Keep a turn; False where it is over."""
        return await self._changed(update(IdempotentRow).where(self._ours(turn)).values(until=until))

    async def end(self, turn: Turn, status: int, headers: list[list[str]], body: bytes | None) -> None:
        """Keep what was answered; nothing without a turn."""
        answered = update(IdempotentRow).where(self._ours(turn))
        await self._changed(answered.values(status=status, headers=headers, body=body))

    async def drop(self, turn: Turn) -> None:
        """Nothing was done: the key stands for nothing again; nothing without a turn."""
        await self._changed(delete(IdempotentRow).where(self._ours(turn)))

    async def _changed(self, statement: Any) -> bool:
        async with self._db.writing(aside=True) as session:
            done: Any = await session.execute(statement)
            return bool(done.rowcount)

    def _ours(self, turn: Turn) -> ColumnElement[bool]:
        return and_(self._mine(turn.key), IdempotentRow.turn == turn.number, IdempotentRow.status.is_(None))

    def _mine(self, key: str) -> ColumnElement[bool]:
        return and_(
            IdempotentRow.tenant == self._caller.tenant,
            IdempotentRow.user == self._caller.name,
            IdempotentRow.key == key,
        )


async def forget(db: Database, before: datetime) -> int:
    """Forget keys of any caller that were begun before; how many, at most a thousand."""
    old = select(IdempotentRow.tenant, IdempotentRow.user, IdempotentRow.key)
    old = old.where(IdempotentRow.begun_at < before).limit(AT_ONCE)
    async with db.writing() as session:
        found = [tuple(one) for one in await session.execute(old)]
        for tenant, user, key in found:
            mine = and_(IdempotentRow.tenant == tenant, IdempotentRow.user == user, IdempotentRow.key == key)
            await session.execute(delete(IdempotentRow).where(mine))
    return len(found)


def note_made(session: Session, place: str) -> None:
    """What this transaction makes, as routes name it: `agents/7`; a request whose answer is lost shows it."""
    session.info[MADE] = place
