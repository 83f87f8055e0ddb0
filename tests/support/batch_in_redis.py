"""Takes in a file of a batch and conducts it on a real Redis, and says what memory both took.

    GAELP_BROKER_URL=... python -m support.batch_in_redis LINES FOLDER

prints a line of JSON. Lines are published as always; each is answered at once, by this process, with all that
a worker leaves in Redis: the claim's keys, the stream, the record.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from gaelp_tasks import app
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Asked, Ended
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import lists, route
from gaelp_tasks.services.batches import take_in, write_out
from gaelp_tasks.tasks.batch_lines import LineTasks, verdict
from gaelp_tasks.tasks.conducting import Conductor, Paces
from support.batch_measure import TEXT, peak_mib, write

MIB = 1024**2
AT_ONCE = 500
#: of what a claim notes: a day longer than results are kept
CLAIMED_S = 2 * 86_400


class Answered(LineTasks):
    """Lines whose invocations end as soon as they are published."""

    most_mib = 0.0  #: that Redis had

    def publish(self, lines: Sequence[Asked]) -> list[Ended]:
        refused = super().publish(lines)
        for queue in lists(route(Tier.BATCH)):
            while messages := app.redis.rpop(queue, AT_ONCE):
                self._answer([json.loads(message)["headers"]["id"] for message in messages])
        self.most_mib = max(self.most_mib, redis_mib())
        return refused

    def _answer(self, ids: Sequence[str]) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": 20}
        with app.redis.pipeline(transaction=False) as pipe:
            for one in ids:
                stream = app.keys.stream(one)
                pipe.set(app.keys.claims(one), 1, ex=CLAIMED_S)
                pipe.set(app.keys.holder(one), "worker@host:0123456789abcdef|17", ex=CLAIMED_S)
                pipe.xadd(stream, {"start": json.dumps({"agent": "chat", "model": "m"})}, id="1-0")
                pipe.xadd(stream, {"t": TEXT}, id="1-1")
                pipe.xadd(stream, {"end": json.dumps({"outcome": "done", "usage": usage})}, id="1-2")
                pipe.expire(stream, int(app.settings.stream_ttl_s))
                result = {"id": one, "text": TEXT, "model": "m", "stop_reason": "stop", "usage": usage}
                record = {"status": "SUCCESS", "result": result, "task_id": one}
                key = app.backend.get_key_for_task(one)
                pipe.set(key, json.dumps(record), ex=int(app.settings.result_ttl_s))
            pipe.execute()


def redis_mib() -> float:
    """Of Redis, now."""
    return float(app.redis.info("memory")["used_memory"]) / MIB


async def main(count: int, folder: Path) -> dict[str, Any]:
    path = folder / "in.jsonl"
    write(path, count)
    db = Database(f"sqlite:///{folder}/gaelp.db")
    await db.migrate()
    batches = Batches(db)
    batch = await batches.create(tier=Tier.BATCH, name="", now=datetime.now(UTC))
    with path.open("rb") as file:
        batch = await take_in(batches, batch, file, Defaults(), app.settings)
    lines, before_mib, began = Answered(app, tenant=""), redis_mib(), monotonic()
    await Conductor(
        batch.id,
        name="me",
        batches=batches,
        lines=lines,
        verdict=verdict,
        window=app.settings.batch_window,
        most_deaths=10,
        leave=lambda: None,
        paces=Paces(soonest=0.0),
    ).run(ticket=0, died=False)
    took_s = monotonic() - began
    with (folder / "out.jsonl").open("w") as out:
        results = await write_out(batches, batch, out, errors=False)
    [batch] = await batches.find(batch.id)
    await db.close()
    return {
        "lines": count,
        "results": results,
        "state": batch.state.value,
        "conducted_s": took_s,
        "process_mib": peak_mib(),
        "redis_before_mib": before_mib,
        "redis_mib": lines.most_mib,
    }


if __name__ == "__main__":
    number, place = sys.argv[1:]
    print(json.dumps(asyncio.run(main(int(number), Path(place)))))  # noqa: T201  its answer
