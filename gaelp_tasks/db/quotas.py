"""Quotas in SQL, and what is held of them: what is held is always the sum of its rows, so it cannot drift."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Row,
    Select,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, UtcTime
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.money_rows import NAME, Key
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.quota import FIELDS, Limits, QuotaStanding, Share

__all__ = ["QuotaHoldRow", "QuotaHolding", "QuotaRow", "Quotas"]


class QuotaRow(Base):
    """The limits of a user; NULL: the cluster's default. It is there from his first hold on: it is locked."""

    __tablename__ = "quotas"
    __table_args__ = (UniqueConstraint("tenant", "user_name"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    user_name: Mapped[str] = mapped_column(String(NAME))
    cpu_milli: Mapped[int | None] = mapped_column(BigInteger)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpus: Mapped[int | None] = mapped_column(BigInteger)
    storage_bytes: Mapped[int | None] = mapped_column(BigInteger)
    runs: Mapped[int | None] = mapped_column(BigInteger)


class QuotaHoldRow(Base):
    """What one piece of work holds; the row goes when it is released."""

    __tablename__ = "quota_holds"
    __table_args__ = (UniqueConstraint("tenant", "key"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    quota: Mapped[int] = mapped_column(ForeignKey("quotas.id"), index=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    key: Mapped[str] = mapped_column(String(NAME))
    cpu_milli: Mapped[int] = mapped_column(BigInteger)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[int] = mapped_column(BigInteger)
    storage_bytes: Mapped[int] = mapped_column(BigInteger)
    runs: Mapped[int] = mapped_column(BigInteger)
    held_at: Mapped[datetime] = mapped_column(UtcTime)


QUOTAS = cast(Table, QuotaRow.__table__)
HELD = cast(Table, QuotaHoldRow.__table__)
SUMS = [func.coalesce(func.sum(HELD.c[field]), 0).label(f"held_{field}") for field in FIELDS.values()]


class Quotas:
    """The quotas of one tenant; of all tenants, for who runs the cluster, with None."""

    def __init__(self, db: Database, tenant: str | None, default: Share) -> None:
        """`default` are the limits of whoever has none of his own."""
        self._db = db
        self._tenant = tenant
        self._default = default

    async def listed(self, *, user: str | None = None, most: int, skip: int = 0) -> list[QuotaStanding]:
        """Up to `most`, after `skip`: of all users that have a quota or have held something, or of one."""
        asked = (
            select(QUOTAS, *SUMS)
            .outerjoin(HELD, HELD.c.quota == QUOTAS.c.id)
            .group_by(QUOTAS.c.id)
            .order_by(QUOTAS.c.id)
        )
        if self._tenant is not None:
            asked = asked.where(QUOTAS.c.tenant == self._tenant)
        if user is not None:
            asked = asked.where(QUOTAS.c.user_name == user)
        async with self._db.reading() as session:
            rows = await session.execute(asked.offset(skip).limit(most))
            return [self._standing(row) for row in rows]

    def _standing(self, row: Row[Any]) -> QuotaStanding:
        own = limits_of(row)
        held = Share(*(int(getattr(row, f"held_{field}")) for field in FIELDS.values()))
        return QuotaStanding(row.tenant, row.user_name, own, own.over(self._default), held)


class QuotaHolding:
    """What takes and gives back, within the caller's transaction; the quota of the user is locked."""

    def __init__(self, session: Session, tenant: str) -> None:
        self._session = session
        self._tenant = tenant

    async def quota(self, user: str) -> Row[Any]:
        """The row of this user, made where there is none, locked."""
        insert = postgresql.insert if self._session.get_bind().dialect.name == "postgresql" else sqlite.insert
        asked = select(QUOTAS).where(QUOTAS.c.tenant == self._tenant, QUOTAS.c.user_name == user)
        locking = asked.with_for_update()
        found = (await self._session.execute(locking)).one_or_none()
        if found is None:
            new = insert(QUOTAS).values(tenant=self._tenant, user_name=user)
            await self._session.execute(new.on_conflict_do_nothing())
            found = (await self._session.execute(locking)).one()
        return found

    async def set(self, user: str, limits: Limits) -> None:
        """Change his limits."""
        row = await self.quota(user)
        values = {field: getattr(limits, field) for field in FIELDS.values()}
        await self._session.execute(update(QUOTAS).where(QUOTAS.c.id == row.id).values(values))

    async def held(self, quota: int) -> Share:
        """All that is held of it."""
        row = (await self._session.execute(select(*SUMS).where(HELD.c.quota == quota))).one()
        return Share(*(int(number) for number in row))

    async def find(self, key: str) -> Share | None:
        """What is held under this key; None for nothing."""
        row = (await self._session.execute(self._of(key))).one_or_none()
        return None if row is None else Share(*(getattr(row, field) for field in FIELDS.values()))

    async def take(self, quota: int, key: str, share: Share, now: datetime) -> None:
        """Write it down."""
        values = {"quota": quota, "tenant": self._tenant, "key": key, "held_at": now, **share._asdict()}
        await self._session.execute(HELD.insert().values(values))

    async def give_back(self, key: str) -> bool:
        """Whether there was something under this key."""
        gone = delete(HELD).where(HELD.c.tenant == self._tenant, HELD.c.key == key).returning(HELD.c.id)
        return (await self._session.execute(gone)).one_or_none() is not None

    def _of(self, key: str) -> Select[Any]:
        return select(HELD).where(HELD.c.tenant == self._tenant, HELD.c.key == key)


def limits_of(row: Any) -> Limits:
    """Those that a row of a user holds."""
    return Limits(**{field: getattr(row, field) for field in FIELDS.values()})
