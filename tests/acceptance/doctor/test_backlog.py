"""What the doctor tells of what waits and what is held."""

import re
from pathlib import Path
from time import time

import pytest

from gaelp_tasks.cli import backlog
from support.claims import message
from support.doctor import GOOD, node, said, wrong

pytestmark = [pytest.mark.redis]

ROOT = Path(__file__).parents[3]


def test_queues_that_nobody_serves(found, admin):
    admin.sadd("gaelp:queues", "batch.nowhere_1b", "batch.of-one")
    admin.lpush("batch.nowhere_1b", message("a"), message("b"))
    admin.lpush("batch.of-one", message("c"))
    rows = found(*GOOD)
    missing = rows["queue batch.nowhere_1b"]
    assert missing.verdict == "fail"
    assert missing.finding.startswith("2 wait, the oldest for 0 s. No node has model nowhere_1b")
    assert rows["queues"].finding == "1 wait where some node takes them"
    closed = found(node("one", closed="cordoned"), GOOD[1])
    assert "takes nothing new: one@a (cordoned)" in closed["queue batch.of-one:latest"].finding


def test_what_is_unsorted_or_names_no_model_needs_any_node(found, admin):
    admin.lpush("interactive", message("a"))
    admin.lpush("batch.any", message("b"))
    assert found(*GOOD)["queues"].finding == "2 wait where some node takes them"
    admin.delete(*admin.keys("gaelp:node:*"))
    rows = found()
    assert {"queue interactive", "queue batch.any"} <= wrong(rows)
    assert "No worker is running" in rows["queue interactive"].finding


@pytest.mark.parametrize("tier", backlog.LONG_S)
def test_what_waits_too_long(found, admin, tier):
    for waited_s, verdict in ((backlog.LONG_S[tier] - 30, "ok"), (backlog.LONG_S[tier] + 30, "warn")):
        admin.flushall()
        admin.lpush(f"{tier}.phi", message("a", gaelp_published_at=time() - waited_s))
        rows = found(*GOOD)
        assert rows[f"wait {tier}"].verdict == verdict
        assert "s (phi:latest)" in rows[f"wait {tier}"].finding
        assert {f"wait {tier}"} >= wrong(rows) - {"beat"}


def test_what_is_long_is_what_the_alerts_say():
    rules = (ROOT / "docker/prometheus/alerts.yaml").read_text()
    told = re.findall(r'gaelp_queue_oldest_seconds\{tier="(\w+)"\}\) > (\d+)', rules)
    assert {tier: float(bound_s) for tier, bound_s in told} == backlog.LONG_S


def test_what_is_parked_and_overdue(found, admin):
    admin.zadd("gaelp:parked", {"a": (time() - 60) * 1000, "b": (time() - 1) * 1000})
    row = found(*GOOD)["parked"]
    assert row.verdict == "fail"
    assert row.finding.startswith("1 messages have been due")


def test_suspects_and_dead_letters(found, admin):
    admin.lpush("gaelp:suspects", "x")
    admin.zadd("gaelp:dead", {"x": 1})
    rows = found(*GOOD)
    assert (rows["suspects"].verdict, rows["dead letters"].verdict) == ("warn", "warn")


def test_leases_that_nobody_ends(found, admin):
    admin.zadd("gaelp:leases", {"one|1": (time() - 60) * 1000, "one|2": (time() + 60) * 1000})
    row = found(*GOOD)["leases"]
    assert row.verdict == "fail"
    assert row.finding.startswith("the leases of 1 messages ended")


def test_leases_of_somebody_who_is_not_announced(found, admin):
    ends = (time() + 60) * 1000
    admin.zadd("gaelp:leases", {"ghost|1": ends, "ghost|2": ends, "one|1": ends})
    row = found(*GOOD)["leases"]
    assert said(row) == ("warn", "2 messages are held by somebody who announces no node (ghost)")
    assert found(node("one", holder=""))["leases"].verdict == "ok", "an earlier release does not tell"


def test_what_was_claimed_just_now_is_nobodys_fault():
    now = time()
    assert backlog.leases({}, {"new|1": now + 5}, GOOD, now).verdict == "ok"
    assert backlog.leases({"old|1": now + 5}, {}, GOOD, now).verdict == "ok"
