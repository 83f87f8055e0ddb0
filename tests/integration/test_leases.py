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
from gaelp_tasks.connections import Refused, connect
from gaelp_tasks.keys import Keys
from gaelp_tasks.queues import INBOXES, lists, place, route, step_of
from gaelp_workers.dispatch import Free, Offer
from gaelp_workers.keeper import Keeper, connection_name
from gaelp_workers.leases import Held, Leases
from support.eventually import eventually

pytestmark = pytest.mark.redis

KEYS = Keys()
QUEUE = "interactive"
MOST_BYTES = 10_000
RESULTS = "celery-task-meta-"
NOTHING = (0, 0, [])


@pytest.fixture
def redis(broker):
    app.redis.flushdb()
    return app.redis


@pytest.fixture
def leases(redis):
    return holder("a")


def holder(name: str, ttl_s: float = 60.0) -> Leases:
    made = Leases(
        app.redis, KEYS, holder=name, ttl_s=ttl_s, claims_ttl_s=60.0, poison_deaths=5, results=RESULTS
    )
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


def answer(leases: Leases, take: int, queues: tuple[str, ...], seats: int = 0) -> Any:
    """What a claim gives; each queue is a group of its own, inboxes are inboxes."""
    offered = Offer(queues, tuple(range(len(queues))))
    command = leases.claim_command(offered, Free(take, seats, 0), INBOXES, most_bytes=MOST_BYTES)
    return app.redis.execute_command(*command)


def claim(leases: Leases, take: int = 1, queues: tuple[str, ...] = (QUEUE,), seats: int = 0) -> list[str]:
    """Ids of what was taken, in order."""
    taken, *_ = answer(leases, take, queues, seats)
    ids = []
    for at in range(0, len(taken), 5):
        _, tag, _, alone, text = taken[at : at + 5]
        ids.append(json.loads(text)["headers"]["id"])
        leases.took(tag, Held(ids[-1], alone=bool(alone)))
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


def asking(task_id: str, task: str = "gaelp.invoke_agent", **arguments: Any) -> str:
    """A plain sender's call of a model."""
    body = base64.b64encode(json.dumps([["hi"], arguments, {}]).encode()).decode()
    told = json.loads(message(task_id, task=task)) | {"body": body}
    told["properties"]["body_encoding"] = "base64"
    return json.dumps(told)


def sort(leases: Leases, inbox: str = QUEUE) -> set[str]:
    """Sort what a claim found in an inbox; the queues it went to."""
    _, unsorted, *_ = answer(leases, 0, (inbox,))
    pairs = [(unsorted[at], unsorted[at + 1].encode()) for at in range(0, len(unsorted), 2)]
    places = [(source, text, place(text, inbox)) for source, text in pairs]
    return leases.sort([one for one in places if one[2]])  # type: ignore[misc]  those without are left out


def test_an_inbox_is_sorted_by_a_worker_without_room_byte_for_byte(redis, leases):
    texts = [asking("1", model="m:1b"), asking("2"), asking("3", model="m:1b", tier="background")]
    embedding = asking("4", task="gaelp.embed")
    publish(*texts, embedding)
    assert claim(leases, 0) == []
    assert sort(leases) == {"interactive.m_1b", "interactive.any", "background.m_1b", "interactive.embed"}
    usual = step_of(5)
    assert redis.lrange(lists("interactive.m_1b")[usual], 0, -1) == [texts[0]]
    assert redis.lrange(lists("background.m_1b")[usual], 0, -1) == [texts[2]]
    assert redis.lrange(lists("interactive.embed")[usual], 0, -1) == [embedding]
    assert redis.smembers(KEYS.queues) == {
        "interactive.m_1b",
        "interactive.any",
        "background.m_1b",
        "interactive.embed",
    }
    assert not redis.exists(QUEUE)


def test_two_who_sort_the_same_inbox_move_each_message_once(redis, leases):
    publish(*(asking(str(number)) for number in range(9)))
    _, unsorted, *_ = answer(leases, 0, (QUEUE,))
    places = [
        (unsorted[at], unsorted[at + 1].encode(), place(unsorted[at + 1].encode(), QUEUE))
        for at in range(0, 18, 2)
    ]
    leases.sort(places[:4])
    leases.sort(places)
    leases.sort(places)
    assert redis.llen(lists("interactive.any")[5]) + redis.llen(QUEUE) == 9
    assert claim(leases, 9, ("interactive.any",)) == [
        str(number) for number in range(redis.hlen(KEYS.unacked))
    ]


def test_what_calls_no_model_runs_from_its_inbox_around_what_waits_there(leases):
    publish(message("1"), asking("2"), message("3"))
    assert claim(leases, 9) == ["1"]
    sort(leases)
    assert claim(leases, 9) == ["3"]


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
        *leases.claim_command(offered, Free(9, 0, 0), INBOXES, most_bytes=MOST_BYTES)
    )
    assert [json.loads(text)["headers"]["id"] for text in taken[4::5]] == ["high", "inbox", "low", "batch"]


def test_an_embedding_takes_a_seat_and_waits_for_no_slot(redis, leases):
    queue = route("interactive", "m")
    publish(message("1"), message("2", task="gaelp.embed"), queue=lists(queue)[5])
    publish(message("3", task="gaelp.embed"), queue=lists("interactive.embed")[5])
    assert claim(leases, 0, (queue, "interactive.embed"), seats=9) == ["3"]
    assert claim(leases, 1, (queue,), seats=0) == ["1"]
    assert claim(leases, 9, (queue,), seats=0) == []
    assert claim(leases, 0, (queue,), seats=1) == ["2"]


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


def test_queues_that_hold_nothing_are_forgotten_and_others_found_unasked(redis, leases):
    redis.sadd(KEYS.queues, "batch.gone", "batch.there")
    publish(message("1"), queue=lists("batch.there")[9])
    publish(message("2"), queue=lists("batch.direct")[3])
    assert leases.waiting(redis, also=["batch.direct", "batch.none"], tidy=True) == {
        "batch.gone",
        "batch.there",
        "batch.direct",
    }
    assert redis.smembers(KEYS.queues) == {"batch.there"}


def test_what_redis_reads_and_python_does_not_is_refused_and_strands_nobody(redis, leases):
    """cjson takes a control character behind the document, and numbers of any length."""
    publish(asking("junk") + "\x1f", asking("good"))
    sort(leases)
    assert "good" in claim(leases, 9, ("interactive.any",))
    assert not redis.exists(QUEUE)


def test_a_key_of_another_kind_in_the_way_of_sorting_loses_nothing(redis, leases):
    publish(asking("1", model="m"), asking("2"))
    redis.set(lists("interactive.m")[5], "no list")
    sort(leases)
    assert redis.llen(QUEUE) == 1
    assert claim(leases, 9, ("interactive.any",)) == ["2"]


@pytest.mark.parametrize("key", [KEYS.unacked, KEYS.leases, KEYS.parked, KEYS.dead])
def test_a_key_of_ours_that_was_broken_stops_claims_before_they_take_anything(redis, leases, key):
    publish(message("1"))
    redis.lpush(key, "x")
    with pytest.raises(Refused, match=f"{key} is a list and has to be a .*: delete it"):
        claim(leases)
    assert redis.llen(QUEUE) == 1


def test_a_queue_is_called_out_again_when_something_comes_back_to_it(redis, leases):
    publish(message("1"), queue=lists("batch.m")[5])
    claim(leases, 1, ("batch.m",))
    leases.give_back(*leases.held)
    assert redis.smembers(KEYS.queues) == {"batch.m"}
    redis.delete(KEYS.queues)
    claim(leases, 1, ("batch.m",))
    leases.sweep(redis, dead=["a"])
    assert redis.smembers(KEYS.queues) == {"batch.m"}


def test_a_stream_that_outlived_its_claim_number_fences_nobody(redis, leases):
    redis.xadd(KEYS.stream("1"), {"t": "x"}, id="7-3")
    publish(message("1", task="gaelp.invoke_agent"), queue=lists("batch.any")[5])
    assert claim(leases, 1, ("batch.any",)) == ["1"]
    assert redis.get(KEYS.claims("1")) == "8"


def test_an_ended_run_holds_nobody_up_although_its_lease_was_renewed_once_more(redis, leases):
    publish(message("1"), message("1"))
    claim(leases)
    [tag] = leases.held
    leases.done(tag)
    redis.zadd(KEYS.leases, {tag: 2**42})
    assert claim(leases) == ["1"]


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
