"""What both databases tell Prometheus of agents, training jobs and what was accepted."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Boolean, DateTime, Float, insert
from sqlalchemy.types import Integer, Numeric

from gaelp_tasks.db.accepted import AcceptedRow
from gaelp_tasks.db.agent_rows import AgentRow
from gaelp_tasks.db.base import UtcTime
from gaelp_tasks.db.figures import plane_now
from gaelp_tasks.db.job_rows import JobRow
from gaelp_tasks.metrics.control_plane import BUCKETS_S

NOW = datetime.now(UTC)


def filled(row, **given):
    """Values for every column that must have one."""

    def plain(column):
        kind = column.type
        if isinstance(kind, UtcTime | DateTime):
            return NOW
        if isinstance(kind, Boolean):
            return False
        return 0 if isinstance(kind, Integer | Numeric | Float) else ""

    needed = {column.name: plain(column) for column in row.__table__.columns if not column.nullable}
    for name in ("hyperparameters", "config"):
        needed |= {name: {}} if name in needed else {}
    return needed | given


async def add(db, row, *those):
    async with db.writing() as session:
        for number, given in enumerate(those, start=1):
            await session.execute(insert(row).values(filled(row, **{"id": number} | given)))


async def test_an_empty_database_tells_zeros(db):
    plane = await plane_now(db)
    assert set(plane.agents.values()) == set(plane.jobs.values()) == {0}
    assert {took.ended for took in plane.durations.values()} == {0}
    assert plane.durations.keys() == {"completed", "failed", "cancelled"}
    assert (plane.held, plane.relay_waiting, plane.relay_oldest_s) == ({}, 0, 0.0)


async def test_agents_and_jobs_are_counted_over_all_tenants(db):
    await add(db, AgentRow, {"state": "running", "tenant": "a"}, {"state": "running", "tenant": "b"})
    running = {"state": "running", "agent_id": 2, "cpu_milli": 1500, "memory_bytes": 100, "gpus": 1}
    ended = ({"state": "completed", "ran_s": seconds} for seconds in (0.5, 1.0, 70.0, 1e9))
    await add(db, JobRow, running, running | {"agent_id": 3}, running, *ended, {"state": "queued", "gpus": 9})
    plane = await plane_now(db)
    assert (plane.agents["running"], plane.agents["paused"]) == (2, 0)
    assert (plane.jobs["running"], plane.jobs["completed"], plane.jobs["queued"]) == (3, 4, 1)
    took = plane.durations["completed"]
    assert (took.ended, took.sum_s) == (4, pytest.approx(1e9 + 71.5))
    assert took.within[: BUCKETS_S.index(300) + 1] == (2, 2, 2, 3)
    assert took.within[-1] == 3
    assert plane.held == {
        (2, "cpu"): 3.0, (2, "memory"): 200.0, (2, "gpu"): 2.0,
        (3, "cpu"): 1.5, (3, "memory"): 100.0, (3, "gpu"): 1.0,
    }  # fmt: skip


async def test_what_is_accepted_and_not_published_is_told_with_its_age(db):
    now = datetime.now(UTC)  # not NOW: when this runs the others may have taken a while
    old = {"key": 1, "id": "a", "standing": "accepted", "created_at": now - timedelta(seconds=40)}
    new = {"key": 2, "id": "b", "standing": "accepted", "created_at": now}
    published = {"key": 3, "id": "c", "standing": "published", "created_at": now - timedelta(seconds=90)}
    await add(db, AcceptedRow, old, new, published)
    plane = await plane_now(db)
    assert plane.relay_waiting == 2
    assert 40 <= plane.relay_oldest_s < 80
