"""The line of training jobs: who is let in by its quota, published to Redis, and found again when lost.

A job is a row first. It is admitted when its owner's quota holds what it needs, and until it ends or is
paused; its message is published after that is committed. Whatever dies in between, `upkeep` makes up for it.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.job_rows import JobRow
from gaelp_tasks.db.jobs import AnyJobs
from gaelp_tasks.db.quotas import QuotaHolding, limits_of
from gaelp_tasks.errors import DatabaseUnavailable, QuotaExceeded
from gaelp_tasks.failpoints import reach
from gaelp_tasks.models.money import Owner, OwnerKind
from gaelp_tasks.models.quota import Share
from gaelp_tasks.models.training import JobState, Wish
from gaelp_tasks.services import budgets, quotas
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.training_calls import Call, missing, send
from gaelp_tasks.training.prices import bill, bound_micro

__all__ = [
    "Call",
    "admit",
    "again",
    "dismiss",
    "hold",
    "key_of",
    "leave",
    "limit_of",
    "look_after",
    "publish",
    "settle",
    "upkeep",
]

logger = logging.getLogger(__name__)

AT_ONCE = 100  #: jobs in one transaction
TERMINATED = "its agent was terminated"
FEW = 5  #: that are looked at to be admitted; mostly the first of them does not fit
EVERY_S = 5.0  #: from one upkeep to the next, of each `gaelp api`
UNSEEN_S = 10.0  #: a message that was not published or a run that told nothing for so long is looked for


def key_of(row: JobRow) -> str:
    """Under which its quota and its budgets are held."""
    return f"job:{row.id}"


# --- money and quotas, within the caller's transaction ---


async def hold(session: Session, row: JobRow, settings: Settings, *, spends: bool, now: datetime) -> None:
    """Keep what it may cost at most; of its agent's budget where that `spends`. Raises BudgetExceeded."""
    agent = Owner(OwnerKind.AGENT, str(row.agent_id))
    owners = [agent, Owner(OwnerKind.USER, row.owner), Owner(OwnerKind.JOB, str(row.id))]
    spared = [] if spends else [agent]
    needs, whole_s = row.resources, row.timeout_s
    most = bound_micro(settings.tariff, needs, whole_s, preemptible=row.preemptible)
    await budgets.hold(session, key_of(row), owners, most, tenant=row.tenant, spared=spared, now=now)


async def settle(session: Session, row: JobRow, settings: Settings, now: datetime) -> None:
    """Pay for the time that it ran; once, and never more than was held."""
    charges = bill(settings.tariff, row.resources, row.ran_s, preemptible=row.preemptible)
    spent_micro = sum(charge.amount_micro for charge in charges)
    await budgets.settle(session, key_of(row), spent_micro, charges, tenant=row.tenant, now=now)


async def leave(session: Session, row: JobRow) -> None:
    """It takes nothing of its owner's quota any more."""
    row.admitted_at = None
    # locked before, so that of two who look whether somebody fits now one sees what the other has done
    await QuotaHolding(session, row.tenant).quota(row.owner)
    await quotas.release(session, key_of(row), tenant=row.tenant)


async def admit(session: Session, tenant: str, owner: str, settings: Settings, now: datetime) -> list[Call]:
    """Let in what fits into the owner's quota now, the most urgent first; what does not fit is not passed."""
    await session.flush()
    await QuotaHolding(session, tenant).quota(owner)
    calls: list[Call] = []
    stuck = 0  # those that never fit since the quota was lowered
    while rows := await AnyJobs(session).unadmitted(tenant, owner, skip=stuck, most=FEW):
        for row in rows:
            try:
                await quotas.hold(
                    session, key_of(row), owner, row.resources, tenant=tenant, settings=settings, now=now
                )
            except QuotaExceeded as error:
                row.reason = str(error)
                if not error.never:
                    return calls
                stuck += 1
            else:
                row.admitted_at, row.reason = now, ""
                calls.append(again(row))
        await session.flush()
    return calls


async def dismiss(session: Session, agent_id: int, settings: Settings, now: datetime) -> int:
    """An agent is no more: its jobs are cancelled, and what runs is told to end; how many these were."""
    # all of them before any quota, or this would wait for a run that ends, and that for this
    rows = await AnyJobs(session).of_agent(agent_id)
    for row in rows:
        row.wish = Wish.CANCEL.value
        if row.state == JobState.RUNNING:
            continue
        row.state, row.wish, row.reason, row.ended_at = JobState.CANCELLED.value, "", TERMINATED, now
        row.claim, row.task_id = 0, ""
        await leave(session, row)
        await settle(session, row, settings, now)
    return len(rows)


async def limit_of(session: Session, row: JobRow, settings: Settings) -> Share:
    """The whole quota of its owner."""
    found = await QuotaHolding(session, row.tenant).quota(row.owner)
    return limits_of(found).over(quotas.default_limits(settings))


def again(row: JobRow) -> Call:
    """A new message for it; those before are void."""
    row.task_id, row.claim, row.published_at = str(uuid4()), 0, None
    return Call(row.id, row.task_id, row.priority, row.due_at)


# --- after the commit ---


async def publish(app: GaelpApp, db: Database, calls: Sequence[Call]) -> int:
    """Publish them, as far as Redis takes them; how many. What it does not take, `upkeep` publishes."""
    if not calls:
        return 0
    reach("jobs:committed")
    sent = await asyncio.to_thread(send, app, calls)
    reach("jobs:published")
    if sent:
        async with db.writing() as session:
            await AnyJobs(session).published([call.task_id for call in sent], datetime.now(UTC))
    return len(sent)


async def look_after(app: GaelpApp, db: Database, settings: Settings) -> None:
    """`upkeep` now and then, until cancelled: a system without beat loses no job either."""
    while True:
        # replicas that were started together do not all come at once
        await asyncio.sleep(EVERY_S * random.uniform(0.5, 1.0))  # noqa: S311  no secret
        try:
            await upkeep(app, db, settings)
        except DatabaseUnavailable as error:
            logger.warning("Training jobs cannot be looked after: %s", error)


async def upkeep(app: GaelpApp, db: Database, settings: Settings) -> int:
    """Let in what fits by now, and publish again what Redis has lost; how many. Raises DatabaseUnavailable.

    Any number of programs may do so at the same time.
    """
    now = datetime.now(UTC)
    before = now - timedelta(seconds=UNSEEN_S)
    async with db.reading() as session:
        candidates = await AnyJobs(session).unseen(before, AT_ONCE)
        owners = await AnyJobs(session).waiting_owners()
    gone: set[str] = set()
    if candidates:
        gone = await asyncio.to_thread(missing, app, [one.task_id for one in candidates])
    lost = [one for one in candidates if one.task_id in gone]
    calls: list[Call] = []
    if lost:
        async with db.writing() as session:
            for row in await AnyJobs(session).still_unseen(lost, before):
                calls += await _recall(session, row, settings, now)
    for tenant, owner in owners:
        async with db.writing() as session:
            calls += await admit(session, tenant, owner, settings, now)
    return await publish(app, db, calls)


async def _recall(session: Session, row: JobRow, settings: Settings, now: datetime) -> list[Call]:
    """It is published again; one whose runs were lost again and again without progress fails."""
    if row.state == JobState.RUNNING:
        row.deaths += 1
        if row.deaths >= settings.poison_deaths:
            row.state, row.ended_at = JobState.FAILED.value, now
            row.reason = f"{row.deaths} runs were lost, one after another, without a new checkpoint"
            await leave(session, row)
            await settle(session, row, settings, now)
            return []
        row.state, row.reason = JobState.QUEUED.value, "its run was lost"
        row.attempts = max(0, row.attempts - 1)
    logger.warning("Job %d is nowhere in Redis: published again.", row.id)
    return [again(row)]
