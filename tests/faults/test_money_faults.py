"""Budgets and quotas under many writers at once, and under processes that are killed; `--long` for more."""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from faults.history.probes import PATH
from faults.money.dying import OWNERS, STEPS, story
from gaelp_tasks.db.budgets import Budgets
from gaelp_tasks.db.ledger import Ledger, wrong_balances
from gaelp_tasks.errors import Conflict
from gaelp_tasks.models.ledger import Which
from gaelp_tasks.models.money import Owner, OwnerKind
from gaelp_tasks.models.quota import Limits
from gaelp_tasks.services import budgets, quotas
from gaelp_tasks.services.forsaken import Found, give_back
from gaelp_tasks.settings import Settings

AGENT = Owner(OwnerKind.AGENT, "1")


@asynccontextmanager
async def children(count, *words):
    """Processes of the charger, ready to begin."""
    made = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "faults.money.charger", words[0], words[1], f"p{number}", *words[2:],
            stdin=-1, stdout=-1, env=os.environ | PATH,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        for one in made:
            assert json.loads(await one.stdout.readline()) == {"ready": True}
        yield made
    finally:
        for one in made:
            if one.returncode is None:
                one.kill()
            await one.wait()


async def set_limit(db, owner, limit_micro):
    async with db.writing() as session:
        await budgets.set_budget(session, owner, limit_micro, tenant="", by="root")


async def standing(db, owner=AGENT):
    [found] = await Budgets(db, "").find(owner, now=datetime.now(UTC))
    return found


async def test_charges_from_many_connections_are_approved_as_often_as_the_budget_has_them(
    db, sql_url, request
):
    is_long = request.config.getoption("--long")
    processes, connections, charges = (5, 10, 20) if is_long else (2, 5, 6)
    amount, limit = 7, (5000 if is_long else 250)
    await set_limit(db, AGENT, limit)
    looks, busiest, done = 0, 0, asyncio.Event()

    async def look():
        """Whether it all adds up, all the while."""
        nonlocal looks, busiest
        while not done.is_set():
            async with db.reading() as session:
                assert await wrong_balances(session) == []
            now = await standing(db)
            assert now.available_micro >= 0
            assert now.available_micro + now.held_micro + now.spent_micro == limit
            looks, busiest = looks + 1, max(busiest, now.held_micro)
            await asyncio.sleep(0.02)

    words = ("charge", sql_url, str(connections), str(charges), str(amount))
    async with children(processes, *words) as made:
        looking = asyncio.create_task(look())
        since = time.monotonic()
        told = await asyncio.gather(*(one.communicate(b"go\n") for one in made))
        took_s = time.monotonic() - since
        done.set()
        await looking
    counts = [json.loads(out) for out, _ in told]
    approved = sum(one["approved"] for one in counts)
    refused = sum(one["refused"] for one in counts)
    end = await standing(db)
    sys.stdout.write(
        f"\n{approved + refused:,} charges over {processes * connections} connections in {took_s:.1f} s: "
        f"{approved} approved, {refused} refused, {end.spent_micro} of {limit} spent; "
        f"{looks} looks, all added up\n"
    )
    assert approved == limit // amount
    assert approved + refused == processes * connections * charges
    assert (end.spent_micro, end.held_micro) == (approved * amount, 0)
    [paid] = await Ledger(db, "").sums(Which(), (), most=1)
    assert paid.amount_micro == end.spent_micro
    assert looks > 3


async def test_a_process_killed_at_any_step_loses_nothing_and_pays_nothing_twice(db, sql_url):
    amount, spent = 100, 30
    for owner in OWNERS:
        await set_limit(db, owner, 10_000)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faults.money.dying", sql_url, str(amount), str(spent), stdout=-1,
        env=os.environ | PATH,
    )  # fmt: skip
    out, _ = await child.communicate()
    assert json.loads(out) == dict.fromkeys(STEPS, signal.SIGKILL)
    async with db.reading() as session:
        assert await wrong_balances(session) == []
    held = len([step for step in STEPS if step not in {"hold:begun", "hold:moved", "hold:before the commit"}])
    held -= len([step for step in STEPS if step in {"settle:committed", "void:committed"}])
    for owner in OWNERS:
        now = await standing(db, owner)
        assert (now.held_micro, now.spent_micro) == (held * amount, spent), (
            "each step is whole, or is not there"
        )
    # whoever does the work again does all of it again
    for step, act in STEPS.items():
        if step in {"settle:committed", "void:committed"}:
            with pytest.raises(Conflict):
                await story(sql_url, f"test:{step}", act, amount, spent)
            async with db.writing() as session:
                if act == "void":
                    first = await budgets.void(session, f"test:{step}", tenant="")
                else:
                    first = await budgets.settle(session, f"test:{step}", spent, tenant="")
            assert not first
        else:
            await story(sql_url, f"test:{step}", act if act != "hold" else "settle", amount, spent)
    settled = len([act for act in STEPS.values() if act != "void"])
    for owner in OWNERS:
        now = await standing(db, owner)
        assert (now.held_micro, now.spent_micro) == (0, settled * spent)
    async with db.reading() as session:
        assert await wrong_balances(session) == []


async def test_parallel_quota_holds_never_exceed_it_and_what_the_killed_held_comes_back(db, sql_url, request):
    is_long = request.config.getoption("--long")
    processes, connections, holds = (5, 10, 20) if is_long else (2, 4, 8)
    most = 300 if is_long else 24
    async with db.writing() as session:
        await quotas.set_limits(session, "ann", Limits(gpus=most, runs=10**6), tenant="")

    async def held():
        return (await quotas.show(db, "", "ann", Settings())).held.gpus

    live, ended = set(), 0
    async with children(processes, "take", sql_url, str(connections), str(holds)) as made:

        async def listen(child, *, kill_after=None):
            """The keys that it took; it is killed after so many."""
            nonlocal ended
            mine = set()
            child.stdin.write(b"go\n")
            async for line in child.stdout:
                told = json.loads(line)
                mine |= {told["key"]} if "key" in told else set()
                ended += "approved" in told
                assert await held() <= most
                if kill_after is not None and len(mine) >= kill_after:
                    child.kill()
                    return
            live.update(mine)

        first, *others = made
        await asyncio.gather(listen(first, kill_after=3), *(listen(child) for child in others))
    assert ended == processes - 1, "one was killed"
    assert len(live) <= await held() <= most

    async def holding(session, ids):
        return live & set(ids)

    left = await held() - len(live)
    assert left >= 3, "the killed one's"
    found = await give_back(db, budget_holders={}, quota_holders={"test": holding}, old=timedelta(0))
    assert found == Found(budgets=0, quotas=left)
    assert await held() == len(live)
    live.clear()
    await give_back(db, budget_holders={}, quota_holders={"test": holding}, old=timedelta(0))
    assert await held() == 0
