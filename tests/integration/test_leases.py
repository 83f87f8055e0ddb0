"""What is claimed is held by exactly one, and comes back when its holder is gone; on a real Redis."""

import pytest

from gaelp_tasks import app
from gaelp_tasks.connections import connect
from gaelp_tasks.queues import lists
from gaelp_tasks.sweeping import connection_name
from gaelp_workers.keeper import Keeper
from support.claims import KEYS, NOTHING, QUEUE, answer, claim, holder, message, publish, reasons
from support.eventually import eventually

pytestmark = pytest.mark.redis


def test_what_is_done_is_gone(redis, leases):
    publish(message("1"))
    claim(leases)
    [tag] = leases.held
    leases.done(tag)
    assert not leases.held
    assert not redis.exists(KEYS.unacked, KEYS.leases, QUEUE)


def test_what_is_given_back_stands_in_front_in_its_old_order_byte_for_byte(redis, leases):
    texts = [message(name, pad='[] {} "é"') for name in "1234"]
    publish(*texts)
    claim(leases, 3)
    leases.give_back(*leases.held)
    assert redis.lrange(QUEUE, 0, -1) == texts[::-1]
    assert not redis.exists(KEYS.unacked, KEYS.leases)


def test_an_ended_lease_is_swept_and_its_old_holder_is_told(redis, leases):
    publish(message("1"), message("2"))
    late = holder("late", ttl_s=0.001)
    claim(late, 2)
    eventually(lambda: leases.sweep(redis) != NOTHING)
    assert claim(leases, 2) == ["1", "2"]
    assert len(late.renew(redis)) == 2
    tag = next(iter(late.held))
    late.done(tag)
    late.give_back(*late.held)
    assert redis.hlen(KEYS.unacked) == 2, "a late word of the old holder changes nothing"
    assert not redis.exists(QUEUE)


def test_a_renewed_lease_is_not_swept(redis, leases):
    publish(message("1"))
    claim(leases)
    before = redis.zrange(KEYS.leases, 0, -1, withscores=True)
    eventually(
        lambda: leases.renew(redis) == [] and redis.zrange(KEYS.leases, 0, -1, withscores=True) > before
    )
    assert leases.sweep(redis) == NOTHING


def test_a_holder_whose_connection_is_gone_loses_its_work_at_once(redis, leases):
    publish(message("1"))
    dying = holder("dying")
    claim(dying)
    life = connect(app.settings, name=connection_name("dying"))
    life.ping()
    keeper = Keeper(leases, redis, every_s=60, on_lost=print)
    for _ in range(3):
        keeper.beat()
    assert redis.zcard(KEYS.leases) == 1, "it lives"
    life.close()
    eventually(lambda: not any(one["name"] == connection_name("dying") for one in redis.client_list()))
    for _ in range(2):
        keeper.beat()
        assert redis.zcard(KEYS.leases) == 1, "a connection may just be opened anew"
    keeper.beat()
    assert claim(leases) == ["1"]


def test_a_holder_that_was_never_seen_keeps_its_work_until_its_lease_ends(redis, leases):
    publish(message("1"))
    claim(holder("unseen"))
    keeper = Keeper(leases, redis, every_s=60, on_lost=print)
    for _ in range(9):
        keeper.beat()
    assert redis.zcard(KEYS.leases) == 1


def test_a_redis_that_was_emptied_takes_nothing_from_who_runs_it(redis, leases):
    publish(message("1"))
    claim(leases)
    redis.flushdb()
    leases.load()
    assert leases.renew(redis) == []
    assert redis.zcard(KEYS.leases) == 1


def test_an_acknowledgement_that_could_not_be_said_is_said_later(redis, leases, monkeypatch):
    publish(message("1"))
    claim(leases)
    [tag] = leases.held
    nowhere = connect(app.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"}))
    monkeypatch.setattr(leases, "_redis", nowhere)
    leases.done(tag)
    assert not leases.held
    assert leases.renew(redis) == []
    assert redis.hlen(KEYS.unacked) == 1
    leases.pay(redis)
    assert not redis.exists(KEYS.unacked, KEYS.leases)
    assert leases.renew(redis) == []


def test_what_has_begun_is_not_idle_and_what_cannot_be_run_is_buried(redis, leases):
    publish(message("1"), message("2"))
    claim(leases, 2)
    leases.begin("1")
    assert [leases.held[tag].id for tag in leases.idle] == ["2"]
    leases.spoil("1")
    assert reasons() == ["cannot be run"]
    assert [task.id for task in leases.held.values()] == ["2"]


def test_a_full_redis_still_renews(redis, leases):
    publish(message("1"))
    claim(leases)
    redis.config_set("maxmemory", "1mb")
    try:
        before = redis.zrange(KEYS.leases, 0, -1, withscores=True)
        eventually(
            lambda: leases.renew(redis) == [] and redis.zrange(KEYS.leases, 0, -1, withscores=True) > before
        )
    finally:
        redis.config_set("maxmemory", "0")


def test_who_cannot_renew_for_half_a_lease_stops_what_it_runs(redis, leases):
    publish(message("1"))
    claim(leases)
    lost: list[str] = []
    now = [0.0]
    nowhere = connect(app.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"}))
    keeper = Keeper(leases, nowhere, every_s=60, on_lost=lost.append, clock=lambda: now[0])
    now[0] = leases.ttl_s / 2
    keeper.beat()
    assert lost == []
    now[0] = leases.ttl_s / 2 + 1
    keeper.beat()
    assert lost == ["1"]


def test_a_claim_whose_answer_was_lost_is_given_back_and_is_no_death(redis, leases):
    publish(message("1"))
    answer(leases, 1, (QUEUE,))
    keeper = Keeper(leases, redis, every_s=60, on_lost=print)
    for _ in range(5):
        keeper.beat()
        assert redis.llen(QUEUE) == 0
    keeper.beat()
    assert claim(leases) == ["1"]
    assert not redis.exists(KEYS.deaths("1"))


def test_of_what_waits_its_number_and_its_age_are_told_and_nothing_is_touched(redis, leases):
    low = lists("batch.m")[9]
    publish(message("1", gaelp_published_at=1000.5), message("2"), queue="batch.m")
    publish(message("3", gaelp_published_at=1000.5, eta="1970-01-01T01:00:00+00:00"), queue=low)
    publish("junk", queue="interactive.m")
    publish(message("4", gaelp_published_at="junk", pad="x" * 2**20), queue="background.m")
    redis.set("background.other", "no list")
    with redis.pipeline() as pipe:
        pipe.watch("batch.m", low, "interactive.m", "background.m")
        asked = ("batch.m", "interactive.m", "background.m", "background.other", "empty.m")
        found = leases.heads(redis, asked)
        pipe.multi()
        assert pipe.execute() == []
    assert found == {
        "batch.m": (2, "1", 1000.5),
        low: (1, "3", 3600.0),  # it was to be run then
        "interactive.m": (1, "", None),
        "background.m": (1, "", None),  # too large to be read each time
    }
    assert leases.heads(redis, []) == {}
