"""A process that charges one budget, or takes from one quota, over many connections at once.

`python -m faults.money.charger charge URL NAME CONNECTIONS CHARGES AMOUNT`: each charge is held and settled.
`python -m faults.money.charger take URL NAME CONNECTIONS HOLDS`: each hold is kept, and its key printed.
It waits for a line on its standard input before it begins, and prints what it did as JSON lines.
"""

import asyncio
import json
import sys

from gaelp_tasks.db.database import Database
from gaelp_tasks.errors import BudgetExceeded, QuotaExceeded
from gaelp_tasks.models.money import Charge, CostKind, Owner, OwnerKind
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.services import budgets, quotas
from gaelp_tasks.settings import Settings

AGENT = Owner(OwnerKind.AGENT, "1")
ANSWER_S = 300.0  #: the machine is busy, and all others write, too


def tell(**facts):
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def charge(db, name, charges, amount):
    """(approved, refused)"""
    approved = 0
    for number in range(charges):
        key = f"{name}:{number}"
        try:
            async with db.writing() as session:
                assert await budgets.hold(session, key, [AGENT], amount, tenant="")
        except BudgetExceeded:
            continue
        approved += 1
        async with db.writing() as session:
            line = Charge(CostKind.OTHER, 1, amount)
            assert await budgets.settle(session, key, amount, [line], tenant="")
    return approved, charges - approved


async def take(db, name, holds, settings):
    """(approved, refused)"""
    approved = 0
    for number in range(holds):
        try:
            async with db.writing() as session:
                await quotas.hold(
                    session, f"test:{name}-{number}", "ann", Resources(gpus=1), tenant="", settings=settings
                )
        except QuotaExceeded:
            continue
        approved += 1
        tell(key=f"{name}-{number}")
    return approved, holds - approved


async def main(act, url, name, connections, count, *amount):
    several = [Database(url, answer_s=ANSWER_S) for _ in range(int(connections))]
    for db in several:
        await db.revision()  # connected
    tell(ready=True)
    await asyncio.to_thread(sys.stdin.readline)
    if act == "charge":
        work = [charge(db, f"{name}-{n}", int(count), int(amount[0])) for n, db in enumerate(several)]
    else:
        settings = Settings()
        work = [take(db, f"{name}-{n}", int(count), settings) for n, db in enumerate(several)]
    told = await asyncio.gather(*work)
    tell(approved=sum(one[0] for one in told), refused=sum(one[1] for one in told))
    for db in several:
        await db.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
