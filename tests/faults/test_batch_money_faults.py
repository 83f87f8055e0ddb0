"""Batches that a budget pays for, under processes that are killed; `--long` for one of many lines."""

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from faults.history.probes import PATH
from faults.money.dying_batches import EACH, LINES, LONG, STEPS, many, nobody_is_called, story
from gaelp_tasks.db.batch_upkeep import give_up
from gaelp_tasks.db.budgets import Budgets
from gaelp_tasks.db.ledger import wrong_balances
from gaelp_tasks.models.money import Owner, OwnerKind
from gaelp_tasks.services import batch_intake, budgets

ANN = Owner(OwnerKind.USER, "ann")
LIMIT = 10**12


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nobody works on batches but the tests."""
    monkeypatch.setattr(batch_intake, "call_for", nobody_is_called)


async def standing(db):
    [found] = await Budgets(db, "").find(ANN, now=datetime.now(UTC))
    return found.available_micro, found.held_micro, found.spent_micro


async def counted(db, what):
    async with db.reading() as session:
        assert await wrong_balances(session) == []
        return (await session.execute(text(f"SELECT {what}"))).scalar_one()


async def with_budget(db):
    async with db.writing() as session:
        await budgets.set_budget(session, ANN, LIMIT, tenant="", by="root")


async def test_a_process_killed_at_any_step_loses_nothing_of_a_batch_and_charges_nothing_twice(
    db, sql_url, request
):
    steps = [step for step in STEPS if request.config.getoption("--long") or step not in LONG]
    await with_budget(db)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faults.money.dying_batches", sql_url, *steps, stdout=-1, env=os.environ | PATH
    )
    out, _ = await child.communicate()
    assert json.loads(out) == dict.fromkeys(steps, signal.SIGKILL)
    held = await counted(db, "count(*) FROM budget_holds WHERE state = 'held'")
    assert held == await counted(db, "count(*) FROM batch_bills")
    before = steps.index("batch:held")  # the commit of the hold
    assert held == len(steps) - before - 1, "each step is whole, or is not there"
    available, held_micro, spent = await standing(db)
    assert spent == LINES * EACH, "the last one had settled"
    assert held_micro == held * await counted(db, "max(bound_micro) FROM budget_holds") > 0
    assert available == LIMIT - held_micro - spent
    # whoever goes on finds each as it was left; of files that nobody reads any more beat knows
    now = datetime.now(UTC)
    await give_up(db, before=now + timedelta(hours=1), now=now)
    await asyncio.gather(*(story(sql_url, step) for step in steps))
    assert await standing(db) == (LIMIT - len(steps) * LINES * EACH, 0, len(steps) * LINES * EACH)
    assert await counted(db, "count(*) FROM budget_holds") == len(steps), "each was held once"
    assert await counted(db, "sum(amount_micro) FROM costs") == len(steps) * LINES * EACH
    assert await counted(db, "count(*) FROM batch_bills") == 0


async def test_a_batch_of_many_lines_is_held_and_settled_in_pieces(db, sql_url, request):
    """It prints what the intake and the settlement take; the short form has few lines."""
    count = 20_000 if request.config.getoption("--long") else 1200
    await with_budget(db)
    took = await many(sql_url, count)
    assert await standing(db) == (LIMIT - count * EACH, 0, count * EACH)
    assert await counted(db, "count(*) FROM batch_bills") == 0
    sys.stdout.write(
        f"\n{count:,} lines: taken in within {took['unpaid']:.1f} s unpaid and {took['paid']:.1f} s paid, "
        f"settled within {took['settled']:.1f} s\n"
    )
