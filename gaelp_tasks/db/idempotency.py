"""Requests under an idempotency key: begun once, and answered again as the first time."""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, LargeBinary, String, and_, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, JsonText, UtcTime
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.caller import LONGEST_USER, Caller

__all__ = ["LONGEST_KEY", "Begun", "IdempotentRequests", "forget"]

LONGEST_KEY = 255  #: characters
AT_ONCE = 1000  #: rows of one clearing


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


class Begun(NamedTuple):
    """What somebody began before under the same key."""

    digest: str
    status: int | None
    headers: list[list[str]]
    body: bytes | None


class IdempotentRequests:
    """Those of one caller."""

    def __init__(self, db: Database, caller: Caller) -> None:
        self._db = db
        self._caller = caller

    async def begin(self, key: str, digest: str, now: datetime) -> Begun | None:
        """None where this is the first; else what the first was. Raises DatabaseUnavailable."""
        if (found := await self._find(key)) is not None:
            return found
        row = IdempotentRow(
            tenant=self._caller.tenant, user=self._caller.name, key=key, digest=digest, begun_at=now
        )
        try:
            async with self._db.writing() as session:
                session.add(row)
        except IntegrityError:  # somebody else was faster
            return await self._find(key) or Begun(digest, None, [], None)
        return None

    async def _find(self, key: str) -> Begun | None:
        async with self._db.reading() as session:
            row = (await session.scalars(select(IdempotentRow).where(self._mine(key)))).one_or_none()
        return None if row is None else Begun(row.digest, row.status, row.headers or [], row.body)

    async def end(self, key: str, status: int, headers: list[list[str]], body: bytes | None) -> None:
        """Keep what was answered."""
        answered = update(IdempotentRow).where(self._mine(key))
        async with self._db.writing() as session:
            await session.execute(answered.values(status=status, headers=headers, body=body))

    async def drop(self, key: str) -> None:
        """Nothing was done: the key stands for nothing again."""
        async with self._db.writing() as session:
            await session.execute(delete(IdempotentRow).where(self._mine(key)))

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
