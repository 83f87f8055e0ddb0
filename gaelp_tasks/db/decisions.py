"""Decisions in SQL: written beside what they allow, read by who audits."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select

from gaelp_tasks.db.agent_rows import DecisionRow
from gaelp_tasks.db.database import Session
from gaelp_tasks.db.money_rows import CostRow, HoldRow
from gaelp_tasks.models.audit import AuditEntry, Kept, Span

__all__ = ["Decisions"]

Place = tuple[datetime, int]  #: of a row among others, by its time and id


class Decisions:
    """The decisions of one tenant within a transaction; of all tenants, for admins, with None."""

    def __init__(self, session: Session, tenant: str | None) -> None:
        self._session = session
        self._tenant = tenant

    async def add(self, kept: Sequence[Kept]) -> None:
        """Write these down, of whichever tenants."""
        if kept:
            await self._session.execute(insert(DecisionRow), [one._asdict() for one in kept])

    async def listed(
        self, span: Span, *, agent_id: int | None = None, after: Place | None = None, skip: int = 0, most: int
    ) -> list[AuditEntry]:
        """Up to `most` of them behind a place, the oldest first; of any agent for None."""
        asked = self._mine(select(DecisionRow)).where(*_within(DecisionRow, span, after))
        if agent_id is not None:
            asked = asked.where(DecisionRow.agent == agent_id)
        ordered = asked.order_by(DecisionRow.at, DecisionRow.id).offset(skip).limit(most)
        return [_entry(row) for row in await self._session.scalars(ordered)]

    async def spending(
        self, span: Span, *, agent_id: int | None = None, after: Place | None = None, most: int
    ) -> list[AuditEntry]:
        """The same of the lines of the ledger."""
        asked = select(CostRow, HoldRow.key).join(HoldRow, HoldRow.id == CostRow.hold)
        asked = asked.where(*_within(CostRow, span, after))
        if self._tenant is not None:
            asked = asked.where(CostRow.tenant == self._tenant)
        if agent_id is not None:
            asked = asked.where(CostRow.agent == str(agent_id))
        ordered = asked.order_by(CostRow.at, CostRow.id).limit(most)
        return [_spent(row, key) for row, key in await self._session.execute(ordered)]

    async def allowed_since(self, agent_id: int, act: str, since: datetime) -> int:
        """How often this was allowed."""
        asked = self._mine(select(func.count()).select_from(DecisionRow)).where(
            DecisionRow.agent == agent_id,
            DecisionRow.at > since,
            DecisionRow.act == act,
            DecisionRow.allowed.is_(True),
        )
        return int(await self._session.scalar(asked) or 0)

    async def prune(self, before: datetime, most: int) -> int:
        """Throw away up to `most` that are older; how many these were."""
        old = self._mine(select(DecisionRow.id)).where(DecisionRow.at < before).order_by(DecisionRow.id)
        done: Any = await self._session.execute(
            delete(DecisionRow).where(DecisionRow.id.in_(old.limit(most).scalar_subquery())),
            execution_options={"synchronize_session": False},
        )
        return int(done.rowcount)

    def _mine(self, rows: Any) -> Any:
        return rows if self._tenant is None else rows.where(DecisionRow.tenant == self._tenant)


def _within(row: Any, span: Span, after: Place | None) -> list[Any]:
    found = []
    if span.since is not None:
        found.append(row.at >= span.since)
    if span.until is not None:
        found.append(row.at < span.until)
    if after is not None:
        at, number = after
        found.append((row.at > at) | ((row.at == at) & (row.id > number)))
    return found


def _spent(row: CostRow, key: str) -> AuditEntry:
    return AuditEntry(
        kind="spend",
        id=row.id,
        at=row.at,
        tenant=row.tenant,
        agent_id=int(row.agent) if row.agent.isdecimal() else None,
        actor=row.user,
        act=row.kind,
        subject=key,
        quantity=row.quantity,
        amount_micro=row.amount_micro,
    )


def _entry(row: DecisionRow) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        kind="decision" if row.allowed else "violation",
        at=row.at,
        tenant=row.tenant,
        agent_id=row.agent,
        actor=row.actor,
        role=row.role,
        act=row.act,
        allowed=row.allowed,
        rule=row.rule,
        why=row.why,
        subject=row.subject,
    )
