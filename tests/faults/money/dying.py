"""Processes that are killed at every step between a hold and its settlement, each on a key of its own.

`python -m faults.money.dying URL AMOUNT SPENT`: one child after another, forked before anything is open; each
kills itself with SIGKILL at its step. Prints {step: signal} as JSON.
"""

import asyncio
import json
import os
import signal
import sys

from gaelp_tasks import failpoints
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.money import Charge, CostKind, Owner, OwnerKind
from gaelp_tasks.services import budgets

OWNERS = (Owner(OwnerKind.AGENT, "1"), Owner(OwnerKind.USER, "ann"))
#: what is done, in order, and where it may die; the places without a failpoint are this program's own
STEPS = {
    "hold:begun": "hold",
    "hold:moved": "hold",
    "hold:before the commit": "hold",
    "hold:committed": "hold",
    "settle:paid": "settle",
    "settle:released": "settle",
    "settle:billed": "settle",
    "settle:ended": "settle",
    "settle:before the commit": "settle",
    "settle:committed": "settle",
    "void:released": "void",
    "void:before the commit": "void",
    "void:committed": "void",
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


async def story(url, key, act, amount, spent):
    """Hold, then settle or void: as often as it is told, it is the same."""
    db = Database(url)
    try:
        async with db.writing() as session:
            await budgets.hold(session, key, OWNERS, amount, tenant="")
            failpoints.reach("hold:before the commit")
        failpoints.reach("hold:committed")
        async with db.writing() as session:
            if act == "void":
                await budgets.void(session, key, tenant="")
            else:
                await budgets.settle(session, key, spent, [Charge(CostKind.OTHER, 1, spent)], tenant="")
            failpoints.reach(f"{act}:before the commit")
        failpoints.reach(f"{act}:committed")
    finally:
        await db.close()


def main(url, amount, spent):
    ends = {}
    for step, act in STEPS.items():
        child = os.fork()
        if not child:
            failpoints.arm(step, die)
            asyncio.run(story(url, f"test:{step}", act, int(amount), int(spent)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ends[step] = -os.waitstatus_to_exitcode(status)
    sys.stdout.write(json.dumps(ends) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
