"""What is claimed is held by exactly one, and comes back when its holder is gone; on a real Redis."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gaelp_tasks import app
from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.connections import Keys, connect
from gaelp_workers.leases import Held, Keeper, Leases, connection_name
from support.eventually import eventually

pytestmark = pytest.mark.redis

KEYS = Keys()
QUEUE = "interactive"
MOST_BYTES = 10_000
RESULTS = "celery-task-meta-"


@pytest.fixture
def redis(broker):
    app.redis.flushdb()
    return app.redis


@pytest.fixture
def leases(redis):
    return holder("a")


def holder(name: str, ttl_s: float = 60.0) -> Leases:
    made = Leases(app.redis, KEYS, holder=name, ttl_s=ttl_s, claims_ttl_s=60.0, results=RESULTS)
    made.load()
    return made


def message(task_id: str, *, pad: str = "", **headers: Any) -> str:
    body = base64.b64encode(json.dumps([[pad], {}, {}]).encode()).decode()
    return json.dumps(
        {
            "body": body,
            "headers": {"id": task_id, "task": "t", "eta": None, **headers},
            "properties": {"delivery_info": {"routing_key": QUEUE}, "delivery_tag": "sender's own"},
        }
    )


def publish(*texts: str, queue: str = QUEUE) -> None:
    app.redis.lpush(queue, *texts)


def claim(leases: Leases, take: int = 1, lists: tuple[str, ...] = (QUEUE,)) -> list[str]:
    """Ids of what was taken, in order."""
    taken: Any = app.redis.execute_command(*leases.claim_command(lists, take, most_bytes=MOST_BYTES))
    ids = []
    for at in range(0, len(taken), 4):
        _, tag, _, text = taken[at : at + 4]
        ids.append(json.loads(text)["headers"]["id"])
        leases.took(tag, Held(ids[-1], "t"))
    return ids


def reasons() -> list[str]:
    records: Any = app.redis.hvals(KEYS.dead_messages)
    return sorted(json.loads(record.partition("\n")[0])["reason"] for record in records)


def in_time(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_the_first_published_is_taken_first_and_by_one_only(leases):
    publish(*(message(name) for name in "12345"))
    assert claim(leases, 2) == ["1", "2"]
    assert claim(holder("b"), 9) == ["3", "4", "5"]
    assert claim(leases) == []
    assert sorted(task.id for task in leases.held.values()) == ["1", "2"]


def test_lists_are_taken_from_in_the_order_given(leases):
    publish(message("low"), queue="batch")
    publish(message("high"))
    assert claim(leases, 2, ("interactive", "batch")) == ["high", "low"]


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


def test_each_claim_raises_the_number_of_the_task(redis, leases):
    publish(message("1"))
    for number in (1, 2, 3):
        claim(leases)
        assert redis.get(KEYS.claims("1")) == str(number)
        leases.give_back(*leases.held)


@pytest.mark.parametrize(
    ("stored", "group", "again"),
    [
        ('{"status": "SUCCESS", "result": {}}', None, []),
        ('{"status": "SUCCESS", "result": {}}', "g", ["1"]),  # its group may not have counted it
        ('{"status": "STARTED", "result": {}}', None, ["1"]),
        ("junk", None, ["1"]),
        (None, None, ["1"]),
    ],
)
def test_what_has_told_its_result_is_not_run_again(redis, leases, stored, group, again):
    publish(message("1", group=group))
    assert claim(leases) == ["1"]
    if stored is not None:
        redis.set(f"{RESULTS}1", stored)
    leases.give_back(*leases.held)
    assert claim(leases) == again
    assert redis.hlen(KEYS.unacked) == len(again)
    assert not redis.exists(QUEUE)


def test_an_ended_lease_is_swept_and_its_old_holder_is_told(redis, leases):
    publish(message("1"), message("2"))
    late = holder("late", ttl_s=0.001)
    claim(late, 2)
    eventually(lambda: leases.sweep(redis) != (0, 0))
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
    assert leases.sweep(redis) == (0, 0)


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


@pytest.mark.parametrize("kind", ["list", "text"])
def test_a_damaged_key_costs_no_message(redis, leases, kind):
    if kind == "list":
        redis.lpush(KEYS.claims("1"), "x")
    else:
        redis.set(KEYS.claims("1"), "x")
    redis.set("batch", "no list")
    publish(message("1"))
    assert claim(leases, 2, ("batch", QUEUE)) == ["1"]


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("junk", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("null", "not JSON"),
        ("[]", "not a Celery message"),
        ("{}", "not a Celery message"),
        (message("1", id=7), "not a Celery message"),
        (message("1", task=None), "not a Celery message"),
        (message("x" * 300), "not a Celery message"),
        (message("1", compression="gzip"), "compressed"),
        (message("1", pad="x" * MOST_BYTES), "oversized"),
    ],
)
def test_what_cannot_run_is_kept_apart_and_harms_nobody(leases, text, reason):
    publish(message("before"), text, message("after"))
    assert claim(leases, 3) == ["before", "after"]
    assert reasons() == [reason]


def test_a_message_that_failed_here_can_be_buried(leases):
    publish(message("1"))
    claim(leases)
    leases.bury(next(iter(leases.held)), "cannot be handled")
    assert reasons() == ["cannot be handled"]
    assert not leases.held


def test_what_is_not_due_is_parked_and_published_when_it_is(redis, leases):
    publish(message("later", eta=in_time(3600)), message("now"))
    assert claim(leases, 2) == ["now"]
    assert leases.sweep(redis) == (0, 0)
    tag, due = redis.zrange(KEYS.parked, 0, -1, withscores=True)[0]
    assert abs(due / 1000 - datetime.now(UTC).timestamp() - 3600) < 30
    redis.zadd(KEYS.parked, {tag: 1})
    assert leases.sweep(redis) == (0, 1)
    parked: Any = redis.lrange(QUEUE, 0, -1)
    assert [json.loads(text)["headers"]["id"] for text in parked] == ["later"]
    assert not redis.exists(KEYS.parked, KEYS.parked_messages)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    when=st.datetimes(min_value=datetime(2027, 1, 1), max_value=datetime(2999, 12, 31)),  # noqa: DTZ001  the zone is added
    ahead=st.integers(-14 * 60, 14 * 60),
    zulu=st.booleans(),
)
@example(when=datetime(2028, 2, 29, 23, 59, 59, 999999), ahead=-330, zulu=False)  # noqa: DTZ001
def test_times_are_read_as_python_reads_them(redis, leases, when, ahead, zulu):
    from datetime import timezone

    whole = when.replace(tzinfo=UTC if zulu else timezone(timedelta(minutes=ahead)))
    redis.flushdb()
    publish(message("1", eta=whole.isoformat()))
    assert claim(leases) == []
    [(_, due)] = redis.zrange(KEYS.parked, 0, -1, withscores=True)
    assert abs(due - whole.timestamp() * 1000) <= 1


@pytest.mark.parametrize("eta", ["tomorrow", "", "2026-13-45", 5, {"a": 1}, "2001-01-01T00:00:00"])
def test_a_time_that_is_none_or_past_does_not_hold_a_message_up(leases, eta):
    publish(message("1", eta=eta))
    assert claim(leases) == ["1"]


def test_a_parked_task_that_is_cancelled_waits_no_longer(redis, leases):
    publish(message("later", eta=in_time(3600)), message("other", eta=in_time(3600)))
    assert claim(leases, 2) == []
    request_cancel(redis, KEYS, "later", "never sent", ttl_s=60)
    assert leases.sweep(redis) == (0, 1)
    assert claim(leases, 2) == ["later"]
    assert redis.zcard(KEYS.parked) == 1


def test_a_task_that_is_sent_twice_is_parked_twice(redis, leases):
    publish(*[message("1", eta=in_time(3600))] * 2)
    assert claim(leases, 2) == []
    assert redis.hlen(KEYS.parked_messages) == redis.zcard(KEYS.parked) == 2


def test_redis_may_forget_the_scripts(redis, leases):
    publish(message("1"))
    claim(leases)
    redis.script_flush()
    assert leases.renew(redis) == []
    redis.script_flush()
    assert leases.sweep(redis) == (0, 0)
    redis.script_flush()
    leases.give_back(*leases.held)
    assert redis.llen(QUEUE) == 1


@pytest.mark.parametrize("junk", [b"\xff\xfe", "\ud800".encode("utf-16-le", "surrogatepass")])
def test_bytes_that_are_no_text_are_kept_apart_too(leases, redis, junk):
    publish(junk)
    assert claim(leases) == []
    assert redis.hlen(KEYS.dead_messages) == 1
