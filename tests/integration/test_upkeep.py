"""What is old goes, and nothing else: metrics and decisions, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest

from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.decisions import Decisions
from gaelp_tasks.db.measurements import Measurements
from gaelp_tasks.models.agent import NewAgent
from gaelp_tasks.models.audit import Kept, Span
from gaelp_tasks.models.measurement import NewMetrics
from gaelp_tasks.services import audit, metrics

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR_S = 3600.0


@pytest.fixture
async def kept(db, monkeypatch):
    """Ten hours of metrics and decisions of one agent."""
    monkeypatch.setattr(audit, "AT_ONCE", 2)
    monkeypatch.setattr(metrics, "AT_ONCE", 2)
    spec = NewAgent(name="a", type="research").spec
    async with db.writing() as session:
        row = await Agents(session, "").add(spec, tenant="", owner="ann", now=NOW)
        for hours in range(10):
            at = NOW - timedelta(hours=hours)
            await Measurements(session, "").add(row, NewMetrics(values={"h": hours}), now=at)
            one = Kept("", at, row.id, "ann", "user", "invoke", allowed=True, rule="", why="", subject="")
            await Decisions(session, "").add([one])
    return db


async def left(db):
    async with db.reading() as session:
        measured = await Measurements(session, "").listed(1, most=100)
        decided = await Decisions(session, "").listed(Span(), most=100)
    return len(measured), len(decided)


async def test_what_is_old_goes_whatever_its_number_and_nothing_where_all_shall_stay(kept):
    assert await metrics.prune(kept, 0, now=NOW) == await audit.prune(kept, 0, now=NOW) == 0
    assert await left(kept) == (10, 10)
    assert await metrics.prune(kept, 4.5 * HOUR_S, now=NOW) == 5
    assert await audit.prune(kept, 6.5 * HOUR_S, now=NOW) == 3
    assert await left(kept) == (5, 7)
    assert await metrics.prune(kept, 4.5 * HOUR_S, now=NOW) == 0
    async with kept.writing() as session:
        assert await Measurements(session, "").keep_newest(1, 3) == 2
        assert await Measurements(session, "").keep_newest(1, 3) == 0
        assert await Measurements(session, "").keep_newest(1, 100) == 0
    assert (await left(kept))[0] == 3


async def test_another_tenants_rows_are_neither_seen_nor_counted(kept):
    async with kept.writing() as session:
        assert await Measurements(session, "two").listed(1, most=100) == []
        assert await Decisions(session, "two").listed(Span(), most=100) == []
        assert await Decisions(session, "two").allowed_since(1, "invoke", NOW - timedelta(days=1)) == 0
        assert await Agents(session, "two").counts() == (0, 0)
        assert await Agents(session, "two").versions(1, most=10) == []
        assert await Agents(session, "").counts() == (1, 1)
        assert await Decisions(session, "").allowed_since(1, "invoke", NOW - timedelta(hours=3)) == 3
