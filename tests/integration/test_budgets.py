"""Budgets on both databases: held up front, settled or voided once, and the entries always add up."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gaelp_tasks.db.budgets import Budgets, lock, lock_held
from gaelp_tasks.db.ledger import Ledger, wrong_balances
from gaelp_tasks.errors import BudgetExceeded, Conflict, NotFound
from gaelp_tasks.models.ledger import Group, Which
from gaelp_tasks.models.money import Charge, CostKind, Owner, OwnerKind, Period
from gaelp_tasks.services import budgets

AGENT, USER, JOB = (Owner(kind, "1") for kind in OwnerKind)
NOW = datetime(2026, 11, 22, 13, tzinfo=UTC)


@pytest.fixture
def db(kept_db):
    return kept_db


async def give(db, owner, limit_micro, period=Period.NONE, now=NOW, tenant="t"):
    async with db.writing() as session:
        return await budgets.set_budget(
            session, owner, limit_micro, tenant=tenant, by="root", period=period, now=now
        )


async def hold(db, key, owners, amount_micro, now=NOW, tenant="t"):
    async with db.writing() as session:
        return await budgets.hold(session, key, owners, amount_micro, tenant=tenant, now=now)


async def settle(db, key, spent_micro, charges=(), now=NOW):
    async with db.writing() as session:
        return await budgets.settle(session, key, spent_micro, charges, tenant="t", now=now)


async def void(db, key, now=NOW):
    async with db.writing() as session:
        return await budgets.void(session, key, tenant="t", now=now)


async def standing(db, owner, now=NOW, tenant="t"):
    """(available, held, spent)"""
    [found] = await Budgets(db, tenant).find(owner, now=now)
    assert found.limit_micro == found.available_micro + found.held_micro + found.spent_micro
    return found.available_micro, found.held_micro, found.spent_micro


async def test_what_is_held_is_settled_once_and_the_rest_comes_back(db):
    await give(db, AGENT, 100)
    assert await hold(db, "invocation:a", [AGENT, USER], 60)
    assert await standing(db, AGENT) == (40, 60, 0)
    assert await settle(db, "invocation:a", 25, [Charge(CostKind.PROMPT_TOKENS, 5, 25)])
    assert await standing(db, AGENT) == (75, 0, 25)
    assert not await settle(db, "invocation:a", 25)
    assert not await void(db, "invocation:a")
    assert await standing(db, AGENT) == (75, 0, 25)


async def test_what_is_voided_is_whole_again_once(db):
    await give(db, AGENT, 100)
    await hold(db, "job:1", [AGENT], 100)
    assert await void(db, "job:1")
    assert not await void(db, "job:1")
    assert not await settle(db, "job:1", 5)
    assert await standing(db, AGENT) == (100, 0, 0)
    assert not await void(db, "job:2")


async def test_a_hold_that_one_of_the_budgets_cannot_bear_takes_from_none(db):
    await give(db, AGENT, 100)
    await give(db, USER, 30)
    with pytest.raises(
        BudgetExceeded, match=r"^The budget of user 1 has 0\.00003 left, and this may cost up to 0\.00004\.$"
    ):
        await hold(db, "invocation:a", [AGENT, USER, JOB], 40)
    assert await standing(db, AGENT) == (100, 0, 0)
    assert await hold(db, "invocation:a", [AGENT, USER, JOB], 30), "nothing is left of the one that failed"
    assert await standing(db, AGENT) == (70, 30, 0)
    assert await standing(db, USER) == (0, 30, 0)


async def test_a_hold_may_be_for_as_much_as_the_budgets_have(db):
    async def hold_up_to(key, least_micro, most_micro):
        async with db.writing() as session:
            return await budgets.hold_up_to(
                session, key, [AGENT, USER], least_micro, most_micro, tenant="t", now=NOW
            )

    await give(db, AGENT, 100)
    await give(db, USER, 70)
    assert await hold_up_to("invocation:a", 10, 30) == 30
    assert await hold_up_to("invocation:b", 10, 50) == 40
    assert await hold_up_to("invocation:b", 10, 50) == 40
    with pytest.raises(BudgetExceeded):
        await hold_up_to("invocation:c", 10, 50)
    assert await standing(db, AGENT) == (30, 70, 0)
    assert await settle(db, "invocation:b", 50)
    assert await standing(db, USER) == (0, 30, 40), "the bound is what was held"


async def test_more_than_the_bound_is_never_paid(db):
    await give(db, AGENT, 100)
    await hold(db, "job:1", [AGENT], 10)
    await settle(db, "job:1", 50, [Charge(CostKind.GPU_TIME, 1000, 50)])
    assert await standing(db, AGENT) == (90, 0, 10)


async def test_the_same_hold_again_holds_nothing_more_and_another_amount_is_refused(db):
    await give(db, AGENT, 100)
    assert await hold(db, "job:1", [AGENT], 10)
    assert not await hold(db, "job:1", [AGENT], 10)
    assert await standing(db, AGENT) == (90, 10, 0)
    with pytest.raises(Conflict, match="job:1"):
        await hold(db, "job:1", [AGENT], 11)
    await void(db, "job:1")
    with pytest.raises(Conflict, match="job:1"):
        await hold(db, "job:1", [AGENT], 10)


async def test_work_of_owners_without_budgets_is_held_and_settled_too(db):
    assert await hold(db, "invocation:a", [USER], 10)
    assert await settle(db, "invocation:a", 10)
    with pytest.raises(NotFound, match="invocation:b"):
        await settle(db, "invocation:b", 10)


async def test_a_limit_can_be_lowered_under_what_is_held_and_then_nothing_more_is(db):
    await give(db, AGENT, 100)
    await hold(db, "job:1", [AGENT], 60)
    assert (await give(db, AGENT, 50)).available_micro == -10
    with pytest.raises(BudgetExceeded, match=r"has 0\.00 left"):
        await hold(db, "job:2", [AGENT], 1)
    await settle(db, "job:1", 20)
    assert await standing(db, AGENT) == (30, 0, 20)


async def test_a_new_period_has_the_whole_limit_again_less_what_is_still_held(db):
    tomorrow = NOW + timedelta(days=1)
    await give(db, AGENT, 100, Period.DAY)
    await hold(db, "job:1", [AGENT], 60)
    await settle(db, "job:1", 60)
    await hold(db, "job:2", [AGENT], 40)
    with pytest.raises(BudgetExceeded):
        await hold(db, "job:3", [AGENT], 1)
    assert await standing(db, AGENT) == (0, 40, 60)
    assert await standing(db, AGENT, now=tomorrow) == (60, 40, 0)
    await hold(db, "job:3", [AGENT], 60, now=tomorrow)
    await settle(db, "job:2", 40, now=tomorrow)
    assert await standing(db, AGENT, now=tomorrow) == (0, 60, 40)
    assert await standing(db, AGENT, now=NOW) == (0, 60, 40), "a clock that is behind turns nothing back"


async def test_one_tenant_cannot_see_or_spend_what_is_anothers(db):
    await give(db, AGENT, 100)
    await give(db, AGENT, 5, tenant="other")
    await hold(db, "job:1", [AGENT], 50)
    assert await hold(db, "job:1", [AGENT], 5, tenant="other")
    assert await standing(db, AGENT) == (50, 50, 0)
    assert await standing(db, AGENT, tenant="other") == (0, 5, 0)
    assert len(await Budgets(db, None).listed(now=NOW, most=10)) == 2
    assert len(await Budgets(db, "t").listed(now=NOW, most=10)) == 1


async def test_costs_sum_up_by_day_and_kind_on_either_database(db):
    for key, at in (("a", NOW), ("b", NOW + timedelta(days=1)), ("c", NOW + timedelta(days=1))):
        await hold(db, key, [AGENT, JOB], 100, now=at)
        await settle(db, key, 30, [Charge(CostKind.GPU_TIME, 7, 30)], now=at)
    ledger = Ledger(db, "t")
    days = await ledger.sums(Which(), [Group.DAY, Group.JOB, Group.KIND], most=10)
    assert [(one.day, one.job, one.quantity, one.amount_micro) for one in days] == [
        ("2026-11-22", "1", 7, 30),
        ("2026-11-23", "1", 14, 60),
    ]
    [month] = await ledger.sums(Which(job="1"), [Group.MONTH], most=10)
    assert (month.month, month.amount_micro) == ("2026-11", 90)
    assert [line.key for line in await ledger.lines(Which(since=NOW + timedelta(hours=1)), most=10)] == [
        "c",
        "b",
    ]
    assert await Ledger(db, "other").sums(Which(), [Group.KIND], most=10) == []


async def test_a_balance_that_its_entries_do_not_explain_is_seen(db):
    await give(db, AGENT, 100)
    await hold(db, "a", [AGENT], 60)
    await settle(db, "a", 25, [Charge(CostKind.GPU_TIME, 7, 25)])
    async with db.reading() as session:
        assert await wrong_balances(session) == []
    async with db.writing() as session:
        await session.execute(text("UPDATE budgets SET spent_micro = spent_micro - 1"))
        await session.execute(text("UPDATE costs SET amount_micro = amount_micro + 1"))
        assert [what.partition(":")[0] for what in await wrong_balances(session)] == [
            "budget agent 1",
            "bill of a",
        ]


async def test_many_that_hold_and_settle_several_together_wait_for_each_other_in_one_order(db):
    owners = [Owner(OwnerKind.AGENT, str(number)) for number in range(4)]
    for owner in owners:
        await give(db, owner, 10**6)

    async def several(turn):
        mine = random.Random(turn).sample(owners, 3)
        keys = [f"{turn}-{owner.id}" for owner in mine]
        async with db.writing() as session:
            assert await lock(session, [("t", owner) for owner in mine]) == {("t", owner) for owner in mine}
            for key, owner in zip(keys, mine, strict=True):
                await budgets.hold(session, key, [owner, USER], 10, tenant="t", now=NOW)
        async with db.writing() as session:
            held = await lock_held(session, [("t", key) for key in keys])
            assert {key for _, key in held} == set(keys)
            for key in keys[::-1]:
                await budgets.settle(session, key, 3, tenant="t", now=NOW)

    await asyncio.gather(*(several(turn) for turn in range(10)))
    total = [await standing(db, owner) for owner in owners]
    assert sum(spent for _, _, spent in total) == 10 * 3 * 3
    assert {held for _, held, _ in total} == {0}


async def test_old_bills_that_no_budget_paid_are_thrown_away_and_no_others(db):
    await give(db, AGENT, 100)
    for key, owner, at in (("old", JOB, NOW), ("paid", AGENT, NOW), ("new", JOB, NOW + timedelta(days=2))):
        await hold(db, key, [owner], 10, now=at)
        await settle(db, key, 10, now=at)
    await hold(db, "open", [JOB], 10)
    late = NOW + timedelta(days=2)
    assert await budgets.prune(db, 0, now=late) == 0
    assert await budgets.prune(db, 86_400, now=late) == 1
    assert [line.key for line in await Ledger(db, "t").lines(Which(), most=10)] == ["new", "paid"]
    assert await settle(db, "open", 10)
    async with db.reading() as session:
        assert await wrong_balances(session) == []
