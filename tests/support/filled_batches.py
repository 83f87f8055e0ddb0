"""Batches with lines, conducted and written out at one moment."""

import io
import json
from datetime import UTC, datetime, timedelta

from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Ended
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import take_in, write_out
from gaelp_tasks.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)


async def taken_in(batches, *lines, hours=None, **how):
    """A batch of these lines; mappings are lines of ours."""
    file = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    batch = await batches.create(tier=Tier.BATCH, name="x.jsonl", now=NOW, hours=hours)
    return await take_in(batches, batch, io.BytesIO(file), Defaults(), Settings(), now=lambda: NOW, **how)


def prompts(count):
    return [{"custom_id": f"c{number}", "prompt": f"p{number}"} for number in range(1, count + 1)]


async def written(batches, batch, *, errors=False):
    out = io.StringIO()
    count = await write_out(batches, batch, out, errors=errors)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert count == len(lines)
    return lines


def done(number):
    return Ended(number, LineOutcome.DONE, result=json.dumps({"text": f"r{number}"}))


async def conducted(batches, batch, name="me", ticket=0, **how):
    return await batches.take_over(batch.id, name, ticket=ticket, now=NOW, **{"died": False} | how)
