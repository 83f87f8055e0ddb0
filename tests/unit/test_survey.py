"""A survey: queued, running and oldest wait per tier and model, read from Redis without any text."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaelp_tasks.celery_app import app
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.queues import ANY, EMBED, INBOXES, SEPARATOR
from gaelp_tasks.survey import INBOX, MOST_QUEUES, NODES_EVERY_S, PAUSE, Load, Survey, waits_since
from support.fakes import Clock, FakeBroker

NOW = 1_000_000.0
MODEL = "llama3.2:3b"


@pytest.fixture
def broker(monkeypatch):
    """A Redis in memory behind the app of this process."""
    fake = FakeBroker()
    monkeypatch.setitem(app.__dict__, "redis", fake.sync)
    return fake


@pytest.fixture
def survey(broker):
    return Survey(app, now=Clock(NOW), tick=Clock(0.0))


def message(name, published_at=None, eta=None):
    headers = {"id": name, "eta": eta}
    if published_at is not None:
        headers["gaelp_published_at"] = published_at
    return json.dumps({"headers": headers, "body": "secret"})


def queued(broker, key, *messages):
    """Put them there as publishers do, the first one first in line."""
    for one in messages:
        broker.sync.lpush(key, one)


def announce(broker, worker="w@h", **facts):
    snapshot = NodeSnapshot(
        **{
            "worker": worker, "pid": 1, "url": "http://n", "healthy": True, "slots": 2, "started_at": 1.0,
            "seen_at": 2.0, "memory": MemorySnapshot(total_bytes=2, free_bytes=1, source="test"),
            "models": (MODEL,),
        }
        | facts
    )  # fmt: skip
    broker.sync.set(f"gaelp:node:{worker}:{snapshot.url}", snapshot.model_dump_json())
    return snapshot


def start(broker, name, claim=1, **facts):
    broker.sync.set(f"gaelp:claims:{name}", claim)
    broker.sync.xadd(f"gaelp:stream:{name}", {"start": json.dumps(facts)}, id=f"{claim}-0")


def test_an_empty_cluster_is_told_in_zeros(survey):
    found = survey.take()
    assert set(found.loads) == {(tier, model) for tier in INBOXES for model in (INBOX, ANY, EMBED)}
    assert set(found.loads.values()) == {Load()}
    assert (found.nodes, found.counts, found.dead, found.parked, found.suspects, found.held) == (
        (),
        {},
        *(0,) * 4,
    )


def test_what_waits_is_counted_over_all_steps_of_priority_and_the_oldest_is_found(broker, survey):
    announce(broker)
    queued(broker, "batch.llama3.2_3b", message("a", NOW - 5), message("b", NOW - 3))
    queued(broker, f"batch.llama3.2_3b{SEPARATOR}7", message("c", NOW - 90))
    queued(broker, "interactive", message("d", NOW - 1))
    found = survey.take()
    assert found.loads["batch", MODEL] == Load(queued=3, oldest_s=90.0)
    assert found.loads["interactive", INBOX] == Load(queued=1, oldest_s=1.0)
    assert found.loads["background", MODEL] == Load()


def test_a_queue_is_called_as_the_node_calls_its_model_and_as_itself_where_no_node_has_it(broker, survey):
    announce(broker, models=("phi:latest",))
    for queue in ("interactive.phi", "batch.phi_latest", "batch.unheard_of"):
        queued(broker, queue, message(queue, NOW))
        broker.sync.sadd("gaelp:queues", queue)
    found = survey.take()
    assert {place for place, load in found.loads.items() if load.queued} == {
        ("interactive", "phi:latest"),
        ("batch", "phi:latest"),
        ("batch", "unheard_of"),
    }


def test_queues_of_models_that_nodes_have_are_found_though_nobody_called_them_out(broker, survey):
    announce(broker)
    queued(broker, "background.llama3.2_3b", message("a", NOW))
    assert survey.take().loads["background", MODEL].queued == 1


def test_what_was_delayed_waits_since_it_is_due_and_what_ran_before_since_it_was_seen(broker, survey):
    due = datetime.fromtimestamp(NOW - 7, UTC).isoformat()
    queued(broker, "interactive", message("a", NOW - 100, due))
    queued(broker, "batch", message("b", NOW - 100))
    broker.sync.set("gaelp:preempted:b", 1)
    found = survey.take()
    assert found.loads["interactive", INBOX].oldest_s == 7.0
    assert found.loads["batch", INBOX].oldest_s == 0.0


def test_what_tells_no_time_waits_since_it_was_seen_first(broker):
    clock = Clock(NOW)
    survey = Survey(app, now=clock, tick=Clock(0.0))
    queued(broker, "interactive", message("plain"), "junk")
    assert survey.take().loads["interactive", INBOX] == Load(queued=2)
    clock.advance(30.0)
    assert survey.take().loads["interactive", INBOX].oldest_s == 30.0
    broker.sync.rpop("interactive")
    clock.advance(1.0)
    assert survey.take().loads["interactive", INBOX].oldest_s == 0.0, "another one is the next now"


def test_a_sender_whose_clock_is_ahead_waits_no_negative_time(broker, survey):
    queued(broker, "interactive", message("a", NOW + 500))
    assert survey.take().loads["interactive", INBOX] == Load(queued=1, oldest_s=0.0)


def test_who_runs_is_counted_by_tier_and_by_the_model_that_was_asked_for(broker, survey):
    announce(broker, running=("a", "b", "c", "d"), tokens=(0, 0, 0, 0))
    start(broker, "a", tier="batch", model="llama3.2:3b", agent="chat")
    start(broker, "b", claim=3, tier="batch", model=None, agent="chat")
    start(broker, "c", tier="interactive", model=None, agent="embed")
    loads = survey.take().loads
    assert {place: load.running for place, load in loads.items() if load.running} == {
        ("batch", MODEL): 1,
        ("batch", ANY): 1,
        ("interactive", EMBED): 1,
    }


def test_dead_letters_and_all_else_that_lies_somewhere_is_counted(broker, survey):
    broker.sync.zadd("gaelp:dead", {"x": 1, "y": 2})
    broker.sync.zadd("gaelp:parked", {"z": 1})
    broker.sync.lpush("gaelp:suspects", "s")
    broker.sync.hset("gaelp:unacked", "h", "r")
    broker.sync.hset("gaelp:counts", "evicted", 4)
    found = survey.take()
    assert (found.dead, found.parked, found.suspects, found.held) == (2, 1, 1, 1)
    assert found.counts == {"evicted": 4}
    assert (found.beat_leads, found.beat_terms) == (False, 0)


def test_whether_a_beat_leads_is_found(broker, survey):
    broker.sync.set(app.keys.beat_fence, 3)
    assert (survey.take().beat_leads, survey.take().beat_terms) == (False, 3)
    broker.sync.set(app.keys.beat, "somebody|3")
    assert survey.take().beat_leads


def test_when_schedules_were_read_is_told_by_the_clock_of_who_looks(broker):
    survey = Survey(app, now=lambda: 100.0)
    assert survey.take().schedules_age_s is None
    for read_ms, age_s in ((97_500, 2.5), (101_000, 0.0)):
        broker.sync.set(app.keys.beat_read, read_ms)
        assert survey.take().schedules_age_s == age_s


def test_what_is_not_in_the_database_yet_is_counted(broker, survey):
    for _ in range(3):
        broker.sync.xadd(app.keys.history, {"end": "{}"})
    assert survey.take().history == 3


def test_workers_are_searched_now_and_then_and_their_nodes_read_at_each_look(broker):
    tick = Clock(0.0)
    survey = Survey(app, now=Clock(NOW), tick=tick)
    assert survey.take().nodes == ()
    announce(broker, slots=1)
    assert survey.take().nodes == (), "nobody was searched for yet"
    tick.advance(NODES_EVERY_S)
    assert survey.take().nodes[0].slots == 1
    announce(broker, slots=5)
    assert survey.take().nodes[0].slots == 5
    broker.sync.delete("gaelp:node:w@h:http://n")
    assert survey.take().nodes == ()


def test_in_a_full_redis_workers_are_searched_less_often(broker, monkeypatch):
    tick = Clock(0.0)
    search = broker.sync.scan_iter

    def slow(**given):
        tick.advance(1.0)
        return search(**given)

    monkeypatch.setattr(broker.sync, "scan_iter", slow)
    survey = Survey(app, now=Clock(NOW), tick=tick)
    survey.take()
    announce(broker)
    tick.advance(PAUSE - 2.0)
    assert survey.take().nodes == ()
    tick.advance(1.0)
    assert survey.take().nodes


def test_queues_that_somebody_makes_up_are_looked_at_up_to_a_bound(broker, survey):
    made_up = [f"batch.made-up-{number:05}" for number in range(MOST_QUEUES + 50)]
    broker.sync.sadd("gaelp:queues", *made_up)
    for queue in ("interactive", made_up[0], made_up[-1]):
        queued(broker, queue, message(queue, NOW))
    found = survey.take().loads
    assert {place for place, load in found.items() if load.queued} == {
        ("interactive", INBOX),
        ("batch", "made-up-00000"),
    }


def test_without_redis_it_says_so(broker, survey):
    broker.goes_away()
    with pytest.raises(BrokerUnavailable):
        survey.take()


def test_a_message_waits_since_the_later_of_its_times():
    assert waits_since("", "") is None
    assert waits_since("12.5", "") == 12.5
    assert waits_since("12.5", "1970-01-01T00:00:20+00:00") == 20.0
    assert waits_since("30.5", "1970-01-01T00:00:20+00:00") == 30.5
    assert waits_since("30.5", "tomorrow") == 30.5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(INBOXES), st.floats(0, 1e5)), max_size=12))
def test_nothing_is_lost_in_the_sums(waiting):
    fake = FakeBroker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(app.__dict__, "redis", fake.sync)
        for number, (tier, age_s) in enumerate(sorted(waiting, key=lambda one: -one[1])):
            queued(fake, f"{tier}.any", message(str(number), NOW - age_s))
        loads = Survey(app, now=Clock(NOW), tick=Clock(0.0)).take().loads
    assert sum(load.queued for load in loads.values()) == len(waiting)
    for tier in INBOXES:
        ages = [age_s for named, age_s in waiting if named == tier]
        assert loads[tier, ANY].oldest_s == pytest.approx(max(ages, default=0.0), abs=0.002)
