"""The tables of budgets, holds, entries and costs, and their rows as the values of gaelp_tasks.models."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Table, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, UtcTime
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.money import Budget, Owner, OwnerKind, Period

__all__ = [
    "BUDGETS",
    "COSTS",
    "ENTRIES",
    "HOLDS",
    "BudgetRow",
    "CostRow",
    "EntryRow",
    "HoldRow",
    "budget_of",
    "has_turned",
]

Key = BigInteger().with_variant(Integer, "sqlite")  #: SQLite counts up only what it calls INTEGER
NAME = 255  #: characters of an id, a name or a key
OPEN = text("state = 'held'")


class BudgetRow(Base):
    """What one owner may spend; limit = available + held + spent."""

    __tablename__ = "budgets"
    __table_args__ = (UniqueConstraint("tenant", "owner_kind", "owner_id"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    owner_kind: Mapped[str] = mapped_column(String(16))
    owner_id: Mapped[str] = mapped_column(String(NAME))
    available_micro: Mapped[int] = mapped_column(BigInteger)
    held_micro: Mapped[int] = mapped_column(BigInteger)
    spent_micro: Mapped[int] = mapped_column(BigInteger)
    period: Mapped[str] = mapped_column(String(16))
    period_start: Mapped[datetime | None] = mapped_column(UtcTime)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class HoldRow(Base):
    """What a piece of work may cost at most, and what it has cost; '' where an owner is not known."""

    __tablename__ = "budget_holds"
    __table_args__ = (
        UniqueConstraint("tenant", "key"),
        Index("ix_budget_holds_open", "held_at", sqlite_where=OPEN, postgresql_where=OPEN),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    key: Mapped[str] = mapped_column(String(NAME))  #: of the work: "invocation:ID", "job:ID"
    agent: Mapped[str] = mapped_column(String(NAME))
    user: Mapped[str] = mapped_column("user_name", String(NAME))
    job: Mapped[str] = mapped_column(String(NAME))
    state: Mapped[str] = mapped_column(String(16))
    bound_micro: Mapped[int] = mapped_column(BigInteger)
    asked_micro: Mapped[int | None] = mapped_column(BigInteger)  #: what it was to be settled with
    spent_micro: Mapped[int] = mapped_column(BigInteger)  #: never more than the bound
    most_prompt_tokens: Mapped[int | None] = mapped_column(BigInteger)  #: that a node can report
    most_tokens: Mapped[int | None] = mapped_column(BigInteger)  #: that may be told
    held_at: Mapped[datetime] = mapped_column(UtcTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)


class EntryRow(Base):
    """An amount that went from one account of a budget to another; never changed."""

    __tablename__ = "budget_entries"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    budget: Mapped[int] = mapped_column(ForeignKey("budgets.id"), index=True)
    hold: Mapped[int | None] = mapped_column(ForeignKey("budget_holds.id"), index=True)
    move: Mapped[str] = mapped_column(String(16))
    amount_micro: Mapped[int] = mapped_column(BigInteger)  #: above 0
    at: Mapped[datetime] = mapped_column(UtcTime)
    by: Mapped[str] = mapped_column("made_by", String(NAME))  #: who set the limit; '' for work


class CostRow(Base):
    """A line of the bill of something that was settled; never changed."""

    __tablename__ = "costs"
    __table_args__ = (
        Index("ix_costs_tenant_at", "tenant", "at"),
        Index("ix_costs_tenant_agent_at", "tenant", "agent", "at"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    hold: Mapped[int] = mapped_column(ForeignKey("budget_holds.id"), index=True)
    agent: Mapped[str] = mapped_column(String(NAME))
    user: Mapped[str] = mapped_column("user_name", String(NAME))
    job: Mapped[str] = mapped_column(String(NAME))
    kind: Mapped[str] = mapped_column(String(32))
    quantity: Mapped[int] = mapped_column(BigInteger)
    amount_micro: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(UtcTime)


BUDGETS = cast(Table, BudgetRow.__table__)
HOLDS = cast(Table, HoldRow.__table__)
ENTRIES = cast(Table, EntryRow.__table__)
COSTS = cast(Table, CostRow.__table__)


def budget_of(row: Any, now: datetime) -> Budget:
    """A budget as it stands at this moment: what was spent in a period that is over counts no more."""
    period = Period(row.period)
    turned = has_turned(row, now)
    spent_micro = 0 if turned else row.spent_micro
    available_micro = row.available_micro + (row.spent_micro if turned else 0)
    return Budget(
        tenant=row.tenant,
        owner=Owner(OwnerKind(row.owner_kind), row.owner_id),
        limit_micro=available_micro + row.held_micro + spent_micro,
        available_micro=available_micro,
        held_micro=row.held_micro,
        spent_micro=spent_micro,
        period=period,
        period_start=period.start(now) if turned else row.period_start,
        updated_at=row.updated_at,
    )


def has_turned(row: Any, now: datetime) -> bool:
    """Whether a period of this budget is over and its spending still stands in the row.

    A clock that is behind turns nothing back.
    """
    start = Period(row.period).start(now)
    return start is not None and row.period_start is not None and start > row.period_start
