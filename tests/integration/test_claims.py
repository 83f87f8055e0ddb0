"""What a claim takes, in which order, and what it refuses or parks; on a real Redis."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gaelp_tasks import app
from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.connections import Refused
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import INBOXES, lists, route, step_of
from gaelp_workers.dispatch import OTHERS, SHUT, Free, Held, Offer
from gaelp_workers.transport import PARTS
from support.claims import (
    KEYS,
    MOST_BYTES,
    NOTHING,
    QUEUE,
    RESULTS,
    answer,
    claim,
    holder,
    in_time,
    message,
    publish,
    reasons,
)

pytestmark = pytest.mark.redis


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


def test_what_is_not_due_is_parked_and_published_when_it_is(redis, leases):
    publish(message("later", eta=in_time(3600)), message("now"))
    assert claim(leases, 2) == ["now"]
    assert leases.sweep(redis) == NOTHING
    tag, due = redis.zrange(KEYS.parked, 0, -1, withscores=True)[0]
    assert abs(due / 1000 - datetime.now(UTC).timestamp() - 3600) < 30
    redis.zadd(KEYS.parked, {tag: 1})
    assert leases.sweep(redis) == (0, 1, [])
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


@pytest.mark.parametrize("eta", ["", None, "2001-01-01T00:00:00", "2001-01-01T00:00:00+05"])
def test_a_time_that_is_none_or_past_does_not_hold_a_message_up(leases, eta):
    publish(message("1", eta=eta))
    assert claim(leases) == ["1"]


@pytest.mark.parametrize(
    "eta", ["tomorrow", "2026-13-45", "2031-01-01", "20310101T000000Z", "2031-01-01T00:00:00 x", 5, {"a": 1}]
)
def test_a_time_that_cannot_be_read_here_is_refused(redis, leases, eta):
    """Celery reads more of them, and would let the message wait in the worker's memory."""
    publish(message("1", eta=eta))
    assert claim(leases) == []
    assert redis.zcard(KEYS.dead) == 1


def test_a_parked_task_that_is_cancelled_waits_no_longer(redis, leases):
    ours = {"task": "gaelp.invoke_agent", "eta": in_time(3600)}
    publish(message("later", **ours), message("other", **ours), queue="batch.any")
    assert claim(leases, 2, ("batch.any",)) == []
    request_cancel(redis, KEYS, "later", "never sent", ttl_s=60)
    assert leases.sweep(redis) == (0, 1, [])
    assert claim(leases, 2, ("batch.any",)) == ["later"]
    assert redis.zcard(KEYS.parked) == 1


def test_a_parked_task_of_others_is_not_run_early_because_it_was_cancelled(redis, leases):
    """Only ours settle when they are cancelled; Celery revokes others when they come."""
    publish(message("later", eta=in_time(3600)))
    assert claim(leases) == []
    request_cancel(redis, KEYS, "later", ttl_s=60)
    leases.sweep(redis)
    assert claim(leases) == []
    assert redis.zscore(KEYS.parked, "later") > 1


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
    assert leases.sweep(redis) == NOTHING
    redis.script_flush()
    leases.give_back(*leases.held)
    assert redis.llen(QUEUE) == 1


@pytest.mark.parametrize("junk", [b"\xff\xfe", "\ud800".encode("utf-16-le", "surrogatepass")])
def test_bytes_that_are_no_text_are_kept_apart_too(leases, redis, junk):
    publish(junk)
    assert claim(leases) == []
    assert redis.hlen(KEYS.dead_messages) == 1


def test_of_one_queue_the_higher_priority_is_first_and_equal_ones_as_they_came(leases):
    for number, priority in enumerate([5, 10, 1, 5, 10, 7]):
        publish(message(str(number)), queue=lists("batch.m")[step_of(priority)])
    assert claim(leases, 9, ("batch.m",)) == ["1", "4", "5", "0", "3", "2"]


def test_priority_counts_across_the_queues_of_a_tier_and_never_across_tiers(redis, leases):
    publish(message("low"), queue=lists("interactive.a")[step_of(1)])
    publish(message("high"), queue=lists("interactive.b")[step_of(9)])
    publish(message("batch"), queue=lists("batch.a")[step_of(10)])
    publish(message("inbox"))
    offered = Offer((QUEUE, "interactive.a", "interactive.b", "batch.a"), (0, 0, 0, 1))
    taken, *_ = redis.execute_command(
        *leases.claim_command(offered, Free({OTHERS: 9}, 0, 0), INBOXES, most_bytes=MOST_BYTES)
    )
    assert [json.loads(text)["headers"]["id"] for text in taken[5::PARTS]] == [
        "high",
        "inbox",
        "low",
        "batch",
    ]


def test_an_embedding_takes_a_seat_and_waits_for_no_slot(redis, leases):
    queue = route("interactive", "m")
    publish(message("1"), message("2", task="gaelp.embed"), queue=lists(queue)[5])
    publish(message("3", task="gaelp.embed"), queue=lists("interactive.embed")[5])
    assert claim(leases, 0, (queue, "interactive.embed"), seats=9) == ["3"]
    assert claim(leases, 1, (queue,), seats=0) == ["1"]
    assert claim(leases, 9, (queue,), seats=0) == []
    assert claim(leases, 0, (queue,), seats=1) == ["2"]


def test_what_is_not_taken_is_not_touched_for_redis_tells_everybody_of_a_change(redis, leases):
    queues = (QUEUE, "interactive.m", "interactive.embed", "system")
    publish(message("1", task="gaelp.invoke_agent"))
    publish(message("2"), queue="interactive.m")
    publish(message("3", task="gaelp.embed"), queue="interactive.embed")
    publish(message("4"), queue="system")
    with redis.pipeline() as pipe:
        pipe.watch(*queues)
        assert claim(leases, 0, queues) == []
        assert claim(leases, 0, queues[:2], seats=9) == []
        pipe.multi()
        assert pipe.execute() == []


@pytest.mark.parametrize("key", [KEYS.unacked, KEYS.leases, KEYS.parked, KEYS.dead])
def test_a_key_of_ours_that_was_broken_stops_claims_before_they_take_anything(redis, leases, key):
    publish(message("1"))
    redis.lpush(key, "x")
    with pytest.raises(Refused, match=f"{key} is a list and has to be a .*: delete it"):
        claim(leases)
    assert redis.llen(QUEUE) == 1


def test_a_stream_that_outlived_its_claim_number_fences_nobody(redis, leases):
    redis.xadd(KEYS.stream("1"), {"t": "x"}, id="7-3")
    publish(message("1", task="gaelp.invoke_agent"), queue=lists("batch.any")[5])
    assert claim(leases, 1, ("batch.any",)) == ["1"]
    assert redis.get(KEYS.claims("1")) == "8"


@pytest.mark.parametrize("kind", ["list", "text"])
def test_a_damaged_key_costs_no_message(redis, leases, kind):
    if kind == "list":
        redis.lpush(KEYS.claims("1"), "x")
    else:
        redis.set(KEYS.claims("1"), "x")
    redis.set("batch", "no list")
    publish(message("1"))
    assert claim(leases, 2, ("batch", QUEUE)) == ["1"]


def test_a_message_that_failed_here_can_be_buried(leases):
    publish(message("1"))
    claim(leases)
    leases.bury(next(iter(leases.held)), "cannot be handled")
    assert reasons() == ["cannot be handled"]
    assert not leases.held


MODELS = {"a": "a", "b": "b"}


def offered(leases, queues, room, turns=0):
    """What a claim takes of these queues, each a group of its own: ids, how they came, and what is left."""
    command = leases.claim_command(
        Offer(queues, tuple(range(len(queues))), turns), room, INBOXES, most_bytes=MOST_BYTES
    )
    taken, _, _, _, left = app.redis.execute_command(*command)
    ids = [json.loads(text)["headers"]["id"] for text in taken[5::PARTS]]
    for task_id, tag in zip(ids, taken[1::PARTS], strict=True):
        leases.took(tag, Held(task_id))
    return list(zip(ids, taken[3::PARTS], strict=True)), left


def test_a_full_pool_holds_up_no_other_and_takes_nothing(redis, leases):
    for model in "ab":
        publish(*(message(f"{model}{number}") for number in range(3)), queue=f"batch.{model}")
    publish(message("mine"), message("m", task="gaelp.invoke_agent"), queue="batch")
    room = Free({OTHERS: 1, "a": 0, "b": 2}, 0, 0, MODELS)
    taken, left = offered(leases, ("batch.a", "batch", "batch.b"), room)
    assert [name for name, _ in taken] == ["mine", "b0", "b1"]
    assert left == [[0, 0, 0], 0, 0]
    assert redis.llen("batch.a") == 3


def test_what_is_left_is_told_of_each_pool(leases):
    publish(message("1"), queue="batch.a")
    _, left = offered(leases, ("batch.a",), Free({OTHERS: 4, "a": 3, "b": SHUT}, 7, 2, MODELS))
    assert left == [[4, 2, SHUT], 7, 2]


def test_a_model_without_any_slots_embeds_nothing_either_and_one_that_is_full_does(leases):
    for model in "ab":
        publish(message(model, task="gaelp.embed"), queue=f"batch.{model}")
    taken, left = offered(leases, ("batch.a", "batch.b"), Free({OTHERS: 0, "a": SHUT, "b": 0}, 9, 0, MODELS))
    assert [name for name, _ in taken] == ["b"]
    assert left == [[0, SHUT, 0], 8, 0]


def test_slots_of_runs_that_make_way_are_taken_after_the_free_ones_and_by_all_tiers_together(leases):
    for tier in Tier:
        publish(*(message(f"{tier} {number}") for number in range(3)), queue=f"{tier}.a")
    beyond = {("a", Tier.INTERACTIVE): 3, ("a", Tier.BATCH): 3}
    room = Free({OTHERS: 0, "a": 1}, 0, 0, MODELS, beyond)
    queues = ("interactive.a", "batch.a", "background.a")
    taken, left = offered(leases, queues, room)
    assert taken == [
        ("interactive 0", ""),
        ("interactive 1", "b"),
        ("interactive 2", "b"),
        ("batch 0", "b"),
    ]
    assert left == [[0, 0], 0, 0]
    shut = room._replace(slots={OTHERS: 0, "a": SHUT})
    assert offered(leases, queues, shut)[0] == [], "nobody makes way where there is no slot at all"


def test_one_message_of_what_has_its_turn_goes_before_everything(leases):
    low = lists("background.a")[7]
    publish(message("high"), message("high too"), queue="interactive.a")
    publish(message("urgent"), queue="background.a")
    publish(message("old"), message("young"), queue=low)
    room = Free({OTHERS: 0, "a": 2}, 0, 0, MODELS, {("a", Tier.INTERACTIVE): 1})
    queues = (low, "interactive.a", "background.a")
    assert offered(leases, queues, room, turns=1)[0] == [("old", "t"), ("high", ""), ("high too", "b")]
    full = room._replace(slots={OTHERS: 0, "a": 0}, beyond={})
    assert offered(leases, queues, full, turns=1)[0] == []
    assert [name for name, _ in offered(leases, ("background.a",), room, turns=1)[0]] == ["urgent"]


def test_how_often_a_run_had_to_make_way_comes_with_its_next_claims(redis, leases):
    publish(message("1"))
    redis.set(KEYS.preempted("1"), 2)
    told = []
    for _ in range(2):
        taken, *_ = answer(leases, 1, (QUEUE,))
        told.append((taken[2], taken[4]))
        leases.give_back(taken[1])
    assert told == [(1, 0), (2, 2)], "it cannot have been any before its first claim"
