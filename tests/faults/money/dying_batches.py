"""Processes that are killed at each step from a paid batch's file to its settlement, each with its own batch.

`python -m faults.money.dying_batches URL STEP...`: one child after another, forked before anything is open;
each kills itself with SIGKILL at its step. Prints {step: signal} as JSON.
"""

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from time import monotonic
from types import SimpleNamespace

from gaelp_tasks import failpoints
from gaelp_tasks.celery_app import app
from gaelp_tasks.db import batch_bills
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch import BatchState, LineOutcome, id_under
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Ended, Reach
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.services import batch_intake
from gaelp_tasks.services.batch_bills import settle
from gaelp_tasks.settings import Settings

#: where it may die, in order; the places without a failpoint are this program's own
STEPS = (
    "batch:before its bounds are kept",
    "hold:begun",
    "hold:moved",
    "batch:before it is held",
    "batch:held",
    "batch:half of it is done",
    "batch:over",
    "bill:before it is counted",
    "bill:counted",
    "settle:paid",
    "settle:released",
    "settle:billed",
    "settle:ended",
    "bill:before it is settled",
    "bill:settled",
)
#: these are in one transaction with others, and killed there for single holds, too
LONG = {"hold:begun", "settle:released", "settle:billed"}
LINES = 4
FILE = "".join(
    json.dumps({"custom_id": str(n), "prompt": "Why?", "options": {"num_predict": 10}}) + "\n"
    for n in range(LINES)
)
RESULT = json.dumps({
    "id": "a", "agent": "chat", "model": "m", "node": "n", "tier": "batch", "priority": 5, "text": "t",
    "attempts": 1, "stop_reason": "stop", "usage": {"prompt_tokens": 10, "completion_tokens": 10},
})  # fmt: skip
EACH = 2 + 8  #: what a line costs
ANN = Caller(name="ann")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def nobody_is_called(*_, **__):
    """No worker takes part: the story conducts the batch itself."""


async def file(text=FILE):
    yield text.encode()


async def story(url, step):
    """Submit it, conduct it, settle it: whoever comes after one that was killed goes on where it was."""
    db, settings = Database(url), Settings()
    try:
        rows = Batches(db, "")
        at = SimpleNamespace(app=app, db=db, settings=settings)
        if not await done(rows, step):
            await batch_intake.BatchDesk(at, ANN, "").submit(file(), Defaults(), key=step)
            failpoints.reach("batch:held")
            await conduct(rows, id_under(step, ""))
        failpoints.reach("batch:over")
        await settle(db, settings, id_under(step, ""))
    finally:
        await db.close()


async def many(url, count):
    """Seconds that a batch of so many lines takes, without and with a budget, and its settlement."""
    text = "".join(json.dumps({"custom_id": str(n), "prompt": "Why?" * 50}) + "\n" for n in range(count))
    db, settings, took = Database(url), Settings(), {}
    try:
        rows, at = Batches(db), SimpleNamespace(app=app, db=db, settings=settings)
        for name, caller in {"unpaid": Caller(name="bob"), "paid": ANN}.items():
            since = monotonic()
            facts = await batch_intake.BatchDesk(at, caller, "").submit(file(text), Defaults())
            took[name] = monotonic() - since
        now = datetime.now(UTC)
        await rows.take_over(facts["id"], "me", ticket=0, now=now, died=False)
        for first in range(1, count + 1, 500):
            numbers = range(first, min(first + 500, count + 1))
            ended = [Ended(number, LineOutcome.DONE, result=RESULT) for number in numbers]
            await rows.progress(facts["id"], "me", ended, Reach(), now=now)
        await rows.move(facts["id"], BatchState.FINALIZING, now=now, conductor="me")
        await rows.move(facts["id"], BatchState.COMPLETED, now=now, conductor="me")
        since = monotonic()
        assert await settle(db, settings) == 1
        took["settled"] = monotonic() - since
    finally:
        await db.close()
    return took


async def done(rows, step):
    found = await rows.find(id_under(step, ""))
    return bool(found) and found[0].state is BatchState.COMPLETED


async def conduct(rows, batch_id):
    now = datetime.now(UTC)
    await rows.take_over(batch_id, "me", ticket=0, now=now, died=False)
    for numbers in ((1, 2), (3, 4)):
        ended = [Ended(number, LineOutcome.DONE, result=RESULT) for number in numbers]
        await rows.progress(batch_id, "me", ended, Reach(), now=now)
        failpoints.reach("batch:half of it is done")
    await rows.move(batch_id, BatchState.FINALIZING, now=now, conductor="me")
    await rows.move(batch_id, BatchState.COMPLETED, now=now, conductor="me")


def main(url, *steps):
    ends = {}
    for step in steps:
        child = os.fork()
        if not child:
            batch_intake.call_for, batch_bills.PIECE = nobody_is_called, 2
            failpoints.arm(step, die)
            asyncio.run(story(url, step))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ends[step] = -os.waitstatus_to_exitcode(status)
    sys.stdout.write(json.dumps(ends) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
