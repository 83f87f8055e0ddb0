"""The tables of batches, and their rows as the values of gaelp_tasks.models."""

import json
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, JsonText, UtcTime
from gaelp_tasks.models.batch import (
    LONGEST_TENANT,
    TERMINAL,
    Batch,
    BatchState,
    Counts,
    LineOutcome,
    task_id,
)
from gaelp_tasks.models.batch_file import LONGEST_ID, BadLine, EndedLine, Form, Line
from gaelp_tasks.models.frozen import well_formed
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours

__all__ = [
    "BATCHES",
    "BILLS",
    "BOUNDS",
    "LINES",
    "OVER",
    "BatchBillRow",
    "BatchBoundRow",
    "BatchLineRow",
    "BatchRow",
    "batch_of",
    "columns_of",
    "ended_line_of",
    "storable",
]

OVER = frozenset(state.value for state in TERMINAL)
OPEN = text("outcome IS NULL")


class BatchRow(Base):
    """A batch."""

    __tablename__ = "batches"

    key: Mapped[int] = mapped_column(Integer, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT), index=True)
    owner: Mapped[str] = mapped_column(String(200), server_default="")  #: '' where nobody is known
    state: Mapped[str] = mapped_column(String(16), index=True)
    tier: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)
    seen_at: Mapped[datetime | None] = mapped_column(UtcTime)
    conductor: Mapped[str | None] = mapped_column(
        String(64)
    )  #: who works on it: the fence; None: left in order
    deaths: Mapped[int] = mapped_column(Integer)  #: of those, one after another, without any progress
    ticket: Mapped[int] = mapped_column(Integer)  #: of the newest call to work on it; an older one is ignored
    published_to: Mapped[int] = mapped_column(Integer)  #: lines up to this one may have been published
    disturbed_to: Mapped[int] = mapped_column(Integer)  #: of these there may be more than one message
    cleared_to: Mapped[int] = mapped_column(Integer)  #: Redis holds nothing of lines up to this one
    total: Mapped[int] = mapped_column(Integer)
    done: Mapped[int] = mapped_column(Integer)
    failed: Mapped[int] = mapped_column(Integer)
    invalid: Mapped[int] = mapped_column(Integer)
    expired: Mapped[int] = mapped_column(Integer)
    cancelled: Mapped[int] = mapped_column(Integer)
    trouble: Mapped[str] = mapped_column(Text)
    hours: Mapped[str | None] = mapped_column(Text)  #: gaelp_tasks.models.schedule.Hours as JSON
    waits_until: Mapped[datetime | None] = mapped_column(UtcTime)  #: nobody need work on it before


class BatchLineRow(Base):
    """A line of a batch; the long texts are last, so that SQLite need not read them for the rest."""

    __tablename__ = "batch_lines"
    __table_args__ = (
        UniqueConstraint("batch", "custom_id"),
        # few, however long the file: who takes over asks for them
        Index("ix_batch_lines_open", "batch", "number", sqlite_where=OPEN, postgresql_where=OPEN),
    )

    batch: Mapped[int] = mapped_column(ForeignKey("batches.key", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(String(200))
    custom_id: Mapped[str | None] = mapped_column(String(LONGEST_ID))
    form: Mapped[str] = mapped_column(String(16))
    embeds: Mapped[bool] = mapped_column(Boolean)
    task_id: Mapped[str] = mapped_column(String(36))
    body_bytes: Mapped[int] = mapped_column(BigInteger)
    outcome: Mapped[str | None] = mapped_column(String(16))
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)
    result_bytes: Mapped[int] = mapped_column(BigInteger)
    code: Mapped[str] = mapped_column(String(100))
    why: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    result: Mapped[str] = mapped_column(Text)


class BatchBillRow(Base):
    """The bill of a batch that a budget pays for, from its hold until it is settled; then it is gone."""

    __tablename__ = "batch_bills"

    batch: Mapped[int] = mapped_column(
        ForeignKey("batches.key", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    hold: Mapped[str] = mapped_column(String(255))  #: the key of its hold
    counted_to: Mapped[int] = mapped_column(Integer)  #: lines up to this one are in `charges`
    charges: Mapped[Any] = mapped_column(JsonText)  #: [[kind, quantity, micro-units], ...]


class BatchBoundRow(Base):
    """What a line that is paid for may cost at most; apart from the lines, most of which nobody pays for."""

    __tablename__ = "batch_bounds"

    batch: Mapped[int] = mapped_column(ForeignKey("batches.key", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(Text)  #: that was asked for, '' for none: its prices count
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)  #: that a node can report
    completion_tokens: Mapped[int] = mapped_column(BigInteger)  #: that may be told
    wasted_tokens: Mapped[int] = mapped_column(BigInteger)  #: told by runs that were lost and started over


BATCHES = cast(Table, BatchRow.__table__)
LINES = cast(Table, BatchLineRow.__table__)
BILLS = cast(Table, BatchBillRow.__table__)
BOUNDS = cast(Table, BatchBoundRow.__table__)


def columns_of(batch_id: str, line: Line | BadLine, now: datetime, *, again: bool) -> dict[str, Any]:
    """The columns of a line that was just read; `again`: its custom_id was there before."""
    bad = again or isinstance(line, BadLine)
    why = line.why if isinstance(line, BadLine) else ""
    if again:
        why = f"custom_id: {json.dumps(line.custom_id, ensure_ascii=False)} is the id of an earlier line."
    body = line.arguments if isinstance(line, Line) and not bad else ""
    custom_id = None if again else line.custom_id
    return {
        "number": line.number,
        "custom_id": custom_id,
        "form": line.form.value,
        "embeds": isinstance(line, Line) and line.embeds,
        "task_id": task_id(batch_id, custom_id) if custom_id is not None and not bad else "",
        "body_bytes": len(body),
        "outcome": LineOutcome.INVALID.value if bad else None,
        "ended_at": now if bad else None,
        "result_bytes": 0,
        "code": "invalid_line" if bad else "",
        "why": storable(why),
        "body": body,
        "result": "",
    }


def storable(text: str) -> str:
    """As every database takes it: PostgreSQL has no place for NUL, nor UTF-8 for half a character."""
    return well_formed(text.replace("\0", "\N{REPLACEMENT CHARACTER}"))


def ended_line_of(row: Any) -> EndedLine:
    """A line that has an outcome."""
    return EndedLine(
        number=row.number,
        custom_id=row.custom_id,
        form=Form(row.form),
        embeds=row.embeds,
        outcome=LineOutcome(row.outcome),
        code=row.code,
        why=row.why,
        task_id=row.task_id,
        ended_at_s=row.ended_at.timestamp(),
        result=row.result,
    )


def batch_of(row: Any) -> Batch:
    """A batch."""
    return Batch(
        id=row.id,
        tenant=row.tenant,
        owner=row.owner,
        state=BatchState(row.state),
        tier=Tier(row.tier),
        name=row.name,
        counts=Counts(*(getattr(row, name) for name in Counts._fields)),
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        expires_at=row.expires_at,
        seen_at=row.seen_at,
        trouble=row.trouble,
        hours=None if row.hours is None else Hours.model_validate_json(row.hours),
        waits_until=row.waits_until,
    )
