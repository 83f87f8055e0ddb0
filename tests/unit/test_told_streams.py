"""The stream of an accepted invocation as the API tells it."""

from datetime import UTC, datetime

import pytest

from gaelp_tasks import readers
from gaelp_tasks.celery_app import app
from gaelp_tasks.line import PlainLine
from gaelp_tasks.models.acceptance import Acceptance, Standing
from gaelp_tasks.services import reading
from support.fakes import FakeBroker

ACCEPTED = Acceptance(
    id="i",
    tenant="",
    owner="ada",
    standing=Standing.PUBLISHED,
    agent_id=None,
    agent="",
    model="",
    tier="interactive",
    priority=5,
    digest="",
    asked="{}",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
DONE = ACCEPTED._replace(standing=Standing.DONE, stop_reason="stop")


@pytest.fixture
def broker(monkeypatch):
    fake = FakeBroker()
    monkeypatch.setattr(readers, "BLOCK_S", 0.01)
    monkeypatch.setattr(reading, "open_line", lambda _: PlainLine(fake.client()))
    return fake


async def test_what_comes_between_a_silent_second_and_the_look_into_the_database_is_told(broker):
    rows = []

    async def row():
        rows.append(DONE if rows else ACCEPTED)
        if len(rows) == 2:
            broker.sync.xadd(app.keys.stream("i"), {"t": "lo"}, id="1-1")
        return rows[-1]

    broker.sync.xadd(app.keys.stream("i"), {"t": "Hel"}, id="1-0")
    told = [one async for one in reading.read(app, row, after=None)]
    assert [one.data["text"] for one in told if one.event == "token"] == ["Hel", "lo"]
    assert told[-1].event == "end"
    assert told[-1].data["outcome"] == "done"
