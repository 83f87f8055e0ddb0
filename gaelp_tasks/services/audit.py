"""Every decision about an agent is written down: an allowed one beside what it allows, a refused one alone.

So is who changes users, keys, quotas and budgets.

`trail(db)` is a transaction whose refusals are kept although it is rolled back. Who decides about many in one
transaction rolls back to a savepoint, and calls `keep_refusals` before the commit.
"""

import csv
import heapq
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from gaelp_tasks.db.agent_rows import AgentRow
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.decisions import Decisions
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.models.audit import COLUMNS, SYSTEM, AuditEntry, By, Deed, Kept, Span
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.policy import Act, Asked, Decision, decide
from gaelp_tasks.services.ageing import throw_away

__all__ = [
    "as_csv",
    "as_jsonl",
    "done",
    "entries",
    "happened",
    "judge",
    "keep_refusals",
    "listed",
    "prune",
    "trail",
]

logger = logging.getLogger(__name__)

REFUSED = "gaelp.refused"  #: in a session's info
AT_ONCE = 500  #: rows of one look or transaction


async def judge(
    session: Session, caller: Caller, act: Act, asked: Asked, *, agent: AgentRow | None, subject: str = ""
) -> None:
    """Decide, and write it down. Raises what the broken rule says; NotAllowed, PolicyViolated, Conflict."""
    decision = decide(act, asked)
    kept = Kept(
        tenant=caller.tenant if agent is None else agent.tenant,
        at=datetime.now(UTC),
        # one that is refused its registration never came to be
        agent=None if agent is None or (act is Act.REGISTER and not decision.allowed) else agent.id,
        actor=caller.name,
        role=caller.role.value,
        act=act.value,
        allowed=decision.allowed,
        rule=decision.rule,
        why=decision.why,
        subject=subject,
    )
    if asked.policy.logs_everything:
        _log(kept)
    if not decision.allowed:
        session.info.setdefault(REFUSED, []).append(kept)
        raise decision.refusal(decision.why)
    await Decisions(session, kept.tenant).add([kept])


async def happened(
    session: Session,
    agent: AgentRow,
    decision: Decision,
    *,
    actor: str,
    role: str = SYSTEM,
    subject: str = "",
    why: str = "",
) -> None:
    """Write down what nobody asked for: it happened by itself."""
    kept = Kept(
        tenant=agent.tenant,
        at=datetime.now(UTC),
        agent=agent.id,
        actor=actor,
        role=role,
        act=decision.act.value,
        allowed=decision.allowed,
        rule=decision.rule,
        why=decision.why or why,
        subject=subject,
    )
    _log(kept)
    await Decisions(session, kept.tenant).add([kept])


async def done(session: Session, caller: Caller, deed: Deed, subject: str, *, tenant: str) -> None:
    """Write down what is about no agent, in the transaction that does it."""
    kept = By.of(caller).did(deed, subject, tenant=tenant, at=datetime.now(UTC))
    await Decisions(session, tenant).add([kept])


def _log(kept: Kept) -> None:
    done = "may" if kept.allowed else "must not"
    logger.info(
        "Agent %s: %s (%s) %s %s %s. %s",
        *(kept.agent, kept.actor, kept.role, done, kept.act, kept.subject, kept.why),
    )


async def keep_refusals(session: Session) -> None:
    """Write down what was refused in this transaction so far."""
    kept: list[Kept] = session.info.pop(REFUSED, [])
    await Decisions(session, None).add(kept)


@asynccontextmanager
async def trail(db: Database) -> AsyncIterator[Session]:
    """A transaction as `db.writing()` is; what was refused in it is kept in one of its own."""
    kept: list[Kept] = []
    try:
        async with db.writing() as session:
            kept = session.info.setdefault(REFUSED, [])
            yield session
    except GaelpError:
        if kept:
            async with db.writing(aside=True) as own:
                await Decisions(own, None).add(kept)
        raise


# --- reading it ---------------------------------------------------------------------------


async def listed(
    db: Database, tenant: str | None, span: Span, *, agent_id: int | None = None, most: int, skip: int = 0
) -> list[AuditEntry]:
    """Up to `most` decisions and violations, the oldest first, after `skip`. Raises DatabaseUnavailable."""
    async with db.reading() as session:
        return await Decisions(session, tenant).listed(span, agent_id=agent_id, most=most, skip=skip)


async def entries(
    db: Database, tenant: str | None, span: Span, *, agent_id: int | None = None
) -> AsyncIterator[AuditEntry]:
    """Decisions, violations and spending of a span, by their times. Raises DatabaseUnavailable."""
    decisions = _Pages(db, tenant, span, agent_id, spending=False)
    spending = _Pages(db, tenant, span, agent_id, spending=True)
    await decisions.turn()
    await spending.turn()
    while True:
        # what is older than the last of a full page comes in the right order already
        bound = min((pages.last for pages in (decisions, spending) if not pages.is_done), default=None)
        for entry in heapq.merge(decisions.until(bound), spending.until(bound), key=_time):
            yield entry
        if bound is None:
            return
        for pages in (decisions, spending):
            if not pages.is_done and pages.last == bound:
                await pages.turn()


class _Pages:
    """One kind of records, read a page at a time, the oldest first."""

    def __init__(
        self, db: Database, tenant: str | None, span: Span, agent_id: int | None, *, spending: bool
    ) -> None:
        self._db, self._tenant, self._span, self._agent_id = db, tenant, span, agent_id
        self._spending = spending
        self._read: list[AuditEntry] = []
        self._after: tuple[datetime, int] | None = None
        self.is_done = False

    @property
    def last(self) -> datetime:
        """The time of the last one that was read."""
        assert self._after is not None  # noqa: S101  a page that is not the last one is full
        return self._after[0]

    async def turn(self) -> None:
        """Read the next page."""
        async with self._db.reading() as session:
            found = Decisions(session, self._tenant)
            more = await (found.spending if self._spending else found.listed)(
                self._span, agent_id=self._agent_id, after=self._after, most=AT_ONCE
            )
        self._read += more
        self.is_done = len(more) < AT_ONCE
        if more:
            self._after = (more[-1].at, more[-1].id)

    def until(self, bound: datetime | None) -> Iterator[AuditEntry]:
        """Take those up to a time, or all."""
        count = next(
            (place for place, entry in enumerate(self._read) if bound is not None and entry.at > bound),
            len(self._read),
        )
        taken, self._read = self._read[:count], self._read[count:]
        return iter(taken)


def _time(entry: AuditEntry) -> tuple[datetime, str, int]:
    return entry.at, entry.kind, entry.id


async def as_jsonl(records: AsyncIterator[AuditEntry]) -> AsyncIterator[str]:
    """One JSON object a line."""
    async for entry in records:
        yield entry.model_dump_json() + "\n"


async def as_csv(records: AsyncIterator[AuditEntry]) -> AsyncIterator[str]:
    """A table with a head; a spreadsheet takes no cell of it for a formula."""
    yield _line(COLUMNS)
    async for entry in records:
        told: dict[str, Any] = json.loads(entry.model_dump_json())
        yield _line([_cell(told[name]) for name in COLUMNS])


def _line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


async def prune(db: Database, keep_s: float, *, now: datetime | None = None) -> int:
    """Throw away decisions that are older; how many. 0: none ever. Raises DatabaseUnavailable."""

    async def some(session: Session, before: datetime) -> int:
        return await Decisions(session, None).prune(before, AT_ONCE)

    return await throw_away(db, keep_s, some, now=now)
