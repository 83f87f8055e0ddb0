"""What has seen workers die, and messages that are there twice; on a real Redis."""

import json
from typing import Any

import pytest

from gaelp_tasks.queues import lists
from gaelp_workers.leases import Leases
from support.claims import KEYS, MOST_BYTES, NOTHING, QUEUE, claim, holder, message, publish, reasons
from support.eventually import eventually

pytestmark = pytest.mark.redis


def test_a_second_message_of_a_task_that_runs_waits_until_that_is_over(redis, leases):
    publish(message("1"), message("1"))
    assert claim(leases, 9) == ["1"]
    assert redis.get(KEYS.claims("1")) == "1", "the run that goes on is not fenced"
    [(place, _)] = redis.zrange(KEYS.parked, 0, -1, withscores=True)
    redis.zadd(KEYS.parked, {place: 1})
    leases.done(next(iter(leases.held)))
    leases.sweep(redis)
    assert claim(leases, 9) == ["1"]


def dies(redis: Any, leases: Leases, task_id: str, alone: bool = False) -> None:
    """A worker takes it and dies of it, and is seen to be gone."""
    victim = holder("victim")
    assert claim(victim, 9) == [task_id]
    assert [held.alone for held in victim.held.values()] == [alone]
    leases.sweep(redis, dead=["victim"])


def test_what_has_seen_two_workers_die_runs_alone_and_after_three_more_it_is_a_dead_letter(redis, leases):
    text = message("1")
    publish(text)
    dies(redis, leases, "1")
    dies(redis, leases, "1")
    publish(message("2"))
    busy = holder("busy")
    assert claim(busy, 1) == ["2"]
    assert redis.llen(KEYS.suspects) == 1
    publish(message("3"))
    assert claim(busy, 9) == [], "it empties itself to take the suspect"
    assert claim(leases, 9) == ["1"], "another one that is empty is quicker"
    assert leases.alone
    assert claim(busy, 9) == ["3"]
    leases.sweep(redis, dead=["a"])
    for _ in range(2):
        assert reasons() == []
        assert claim(holder("c")) == [], "set apart again"
        dies(redis, leases, "1", alone=True)
    assert reasons() == ["poison"]
    [record] = redis.hvals(KEYS.dead_messages)
    assert record.partition("\n")[2] == text
    assert json.loads(record.partition("\n")[0])["deaths"] == 5
    assert not redis.exists(KEYS.suspects, KEYS.deaths("1"))


def test_a_suspect_that_runs_well_is_done_like_any_other(redis, leases):
    publish(message("1"))
    dies(redis, leases, "1")
    dies(redis, leases, "1")
    assert claim(leases) == []
    assert claim(leases) == ["1"]
    leases.done(next(iter(leases.held)))
    assert not redis.exists(KEYS.unacked, KEYS.suspects, QUEUE, KEYS.dead)


def test_a_holder_that_was_only_slow_is_not_counted_among_the_dead(redis, leases):
    publish(message("1"))
    late = holder("late", ttl_s=0.001)
    claim(late)
    eventually(lambda: leases.sweep(redis) != NOTHING)
    assert redis.get(KEYS.deaths("1")) == "1"
    for _ in range(3):
        assert len(late.renew(redis)) == 1
    assert not redis.exists(KEYS.deaths("1"))


def suspected(redis: Any, text: str, queue: str = QUEUE) -> None:
    redis.lpush(KEYS.suspects, json.dumps({"id": "1", "queue": lists(queue)[0]}) + "\n" + text)


def test_a_suspect_is_for_those_who_have_room_and_take_from_its_queue(redis, leases):
    suspected(redis, message("1"), "batch.m")
    publish(message("2"))
    assert claim(leases, 0, (QUEUE, "batch.m")) == []
    assert claim(leases, 9) == ["2"], "it does not take from that queue"
    assert claim(holder("b"), 9, (QUEUE, "batch.m")) == ["1"]


def test_a_suspect_that_is_too_large_for_this_worker_is_a_dead_letter(redis, leases):
    suspected(redis, message("1", pad="x" * MOST_BYTES))
    publish(message("2"))
    assert claim(leases, 9) == ["2"]
    assert reasons() == ["oversized"]


def test_a_busy_worker_empties_itself_for_a_while_only(redis, leases):
    publish(message("2"), message("3"))
    claim(leases)
    suspected(redis, message("1"))
    assert claim(leases, 9) == []
    redis.pexpire(KEYS.suspects_taker, 30_000)
    assert claim(leases, 9) == ["3"], "it has waited long enough"


def test_an_ended_run_holds_nobody_up_although_its_lease_was_renewed_once_more(redis, leases):
    publish(message("1"), message("1"))
    claim(leases)
    [tag] = leases.held
    leases.done(tag)
    redis.zadd(KEYS.leases, {tag: 2**42})
    assert claim(leases) == ["1"]
