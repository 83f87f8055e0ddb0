"""Takes in a file of a batch, conducts it and writes it out, and says what memory each took.

    python -m support.batch_measure LINES FOLDER [close]

prints a line of JSON: the peak of this process in MiB after each step, and its seconds. The invocations are
of this process: each ends at the next look. With `close` nothing runs, all lines are closed and the file of
errors is written.
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Asked
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import take_in, write_out
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.batch_lines import Redis, verdict
from gaelp_tasks.tasks.conducting import Conductor, Paces

TEXT = "word " * 20


class Echo:
    """Invocations that have ended as soon as one looks."""

    def __init__(self) -> None:
        self.most = 0
        self._records: dict[str, Any] = {}

    def publish(self, lines: list[Asked]) -> list[Any]:
        usage = {"prompt_tokens": 9, "completion_tokens": 20}
        for line in lines:
            result = {"id": line.task_id, "text": TEXT, "model": "m", "stop_reason": "stop", "usage": usage}
            self._records[line.task_id] = {"status": "SUCCESS", "result": result}
        self.most = max(self.most, len(self._records))
        return []

    def ended(self, ids: list[str]) -> dict[str, Any]:
        return {one: self._records[one] for one in ids}

    def clear(self, ids: list[str]) -> None:
        for one in ids:
            self._records.pop(one, None)

    def void(self, ids: list[str], *, all_of_them: bool, for_s: int) -> None:
        self.clear(ids)

    def stop(self, ids: list[str]) -> None:
        raise AssertionError(ids)

    def redis(self) -> Redis:
        return Redis("one", 0)


def peak_mib() -> float:
    """Of this process, up to now."""
    # not ru_maxrss: that begins with what the program had that started this one
    [peak] = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) / 1024


def write(path: Path, count: int) -> None:
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"custom_id": f"line-{number}", "prompt": f"{TEXT}{number}"}) + "\n")


async def conduct(batches: Batches, batch_id: str) -> float:
    """All of it; the most records that there were at a time."""
    echo = Echo()
    await Conductor(
        batch_id,
        name="me",
        batches=batches,
        lines=echo,
        verdict=verdict,
        window=256,
        most_deaths=10,
        leave=lambda: None,
        paces=Paces(soonest=0.0),
    ).run(ticket=0, died=False)
    return echo.most


async def close(batches: Batches, batch_id: str) -> None:
    now = datetime.now(UTC)
    await batches.take_over(batch_id, "me", ticket=0, now=now, died=False)
    while await batches.close_rest(batch_id, "me", LineOutcome.EXPIRED, TEXT, now=now):
        pass


async def main(count: int, folder: Path, *, closes: bool) -> dict[str, float]:
    path, told = folder / "in.jsonl", {"lines": float(count)}
    write(path, count)
    db = Database(f"sqlite:///{folder}/gaelp.db")
    await db.migrate()
    batches = Batches(db)
    told["begin_mib"] = peak_mib()

    def steps() -> Iterator[None]:
        for name in ("read", "conducted", "written"):
            began = monotonic()
            yield
            told[f"{name}_mib"], told[f"{name}_s"] = peak_mib(), monotonic() - began

    step = steps()
    next(step)
    batch = await batches.create(tier=Tier.BATCH, name="", now=datetime.now(UTC))
    with path.open("rb") as file:
        batch = await take_in(batches, batch, file, Defaults(), Settings())
    next(step)
    if closes:
        await close(batches, batch.id)
    else:
        told["most_in_redis"] = await conduct(batches, batch.id)
    next(step)
    with (folder / "out.jsonl").open("w") as out:
        told["results"] = await write_out(batches, batch, out, errors=closes)
    next(step, None)
    await db.close()
    return told


if __name__ == "__main__":
    lines, place, *how = sys.argv[1:]
    found = asyncio.run(main(int(lines), Path(place), closes=how == ["close"]))
    print(json.dumps(found))  # noqa: T201  its answer
