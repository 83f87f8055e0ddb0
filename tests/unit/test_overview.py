"""Looking at nodes, queues and one invocation."""

import json
import re
from time import time

import pytest
from celery.backends.cache import CacheBackend

from gaelp_tasks import queued
from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.errors import BrokerUnavailable, NodeFailed
from gaelp_tasks.lifecycle import State
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.capacity import ModelSlots
from gaelp_tasks.overview import (
    AmbiguousId,
    Place,
    Runner,
    busy_slots,
    describe,
    find_queued,
    live_nodes,
    of_tiers,
    runners,
    waiting_in,
    whole_id,
)
from gaelp_tasks.queues import lists
from support.fakes import FakeBroker


@pytest.fixture
def broker(monkeypatch):
    """A Redis in memory behind the app of this process, and results in memory."""
    fake = FakeBroker()
    backend = CacheBackend(app=app, backend="memory")
    backend.client.cache.clear()
    monkeypatch.setitem(app.__dict__, "redis", fake.sync)
    monkeypatch.setattr(GaelpApp, "backend", backend)
    return fake


def queue(broker, key, *ids):
    """Put messages into a list of kombu's, in the order in which they were sent."""
    for number in ids:
        broker.sync.lpush(key, json.dumps({"headers": {"id": number}, "body": ""}))


def announce(broker, worker, **facts):
    snapshot = NodeSnapshot(
        **{
            "worker": worker, "pid": 1, "url": "http://n", "healthy": True, "slots": 2, "started_at": 1.0,
            "seen_at": 2.0, "memory": MemorySnapshot(total_bytes=2, free_bytes=1, source="test"),
        }
        | facts
    )  # fmt: skip
    broker.sync.set(f"gaelp:node:{worker}:{snapshot.url}", snapshot.model_dump_json())
    return snapshot


def stream(broker, **entries):
    for entry_id, fields in entries.items():
        flat = {name: value if name == "t" else json.dumps(value) for name, value in fields.items()}
        broker.sync.xadd("gaelp:stream:i", flat, id=entry_id.strip("e").replace("_", "-"))


def test_every_node_of_a_worker_is_listed(broker):
    second = announce(broker, "a@h", url="http://b:1")
    first = announce(broker, "a@h", url="http://a:1")
    other = announce(broker, "b@h", url="http://a:1")
    assert live_nodes(app) == [first, second, other]


def test_a_run_that_is_on_no_node_yet_is_counted_once(broker):
    announce(broker, "a@h", url="http://a:1", running=("r",), unplaced=("s",))
    announce(broker, "a@h", url="http://b:1", unplaced=("s",))
    announce(broker, "b@h", running=("e", "t"), embedding=("e",), slots=1)
    assert busy_slots(live_nodes(app)) == 3
    queue(broker, "batch", "i")
    assert describe(app, "i").why.endswith("3 of 5 slots are busy.")


def run_facts(broker, name, claim, **facts):
    broker.sync.set(f"gaelp:claims:{name}", claim)
    broker.sync.xadd(f"gaelp:stream:{name}", {"start": json.dumps(facts)}, id=f"{claim}-0")
    broker.sync.xadd(f"gaelp:stream:{name}", {"t": "SECRET"}, id=f"{claim}-1")


def test_who_runs_is_told_with_the_facts_of_its_newest_start_and_its_tokens(broker):
    announce(broker, "a@h", url="http://a:1", running=("old", "new"), tokens=(5, 6), unplaced=("open",))
    announce(broker, "a@h", url="http://b:1", unplaced=("open",))
    announce(broker, "b@h", running=("unknown",))
    run_facts(broker, "old", 1, agent="chat", at=1.0)
    run_facts(broker, "old", 2, agent="coding", tier="batch", model="m", attempt=2, at=10.0)
    run_facts(broker, "new", 1, agent="chat", tier="interactive", model=None, attempt=1, at=20.0)
    run_facts(broker, "open", 1, agent="chat", tier="background", attempt=1, at=5.0)
    found = runners(app, live_nodes(app))
    assert found == [
        Runner("open", "a@h", "", "chat", "background", "", 1, 5.0, 0),
        Runner("old", "a@h", "http://a:1", "coding", "batch", "m", 2, 10.0, 5),
        Runner("new", "a@h", "http://a:1", "chat", "interactive", "", 1, 20.0, 6),
        Runner("unknown", "b@h", "http://n", "", "", "", 1, None, 0),
    ]
    assert "SECRET" not in repr(found)
    assert runners(app, []) == []


def test_a_running_one_tells_its_node_as_soon_as_one_of_several_has_answered(broker):
    app.backend.store_result("i", {}, "STARTED")
    run_facts(broker, "i", 1, worker="a@h", node="")
    announce(broker, "a@h", url="http://a:1", unplaced=("i",))
    assert describe(app, "i").node == ""
    announce(broker, "a@h", url="http://a:1", running=("i",))
    assert describe(app, "i").node == "http://a:1"
    app.backend.store_result("i", {"text": "x", "node": "http://b:1"}, "SUCCESS")
    assert describe(app, "i").node == "http://b:1", "the result knows best"


def test_nodes_are_listed_by_name_and_what_cannot_be_read_is_left_out(broker):
    second, first = announce(broker, "b@h"), announce(broker, "a@h")
    broker.sync.set("gaelp:node:old@h", '{"worker": "old@h", "colour": 1}')
    broker.sync.set("gaelp:node:junk@h", "junk")
    assert live_nodes(app) == [first, second]


def test_depths_count_every_list_of_every_queue_of_a_tier(broker):
    for number, name in enumerate(lists("batch")):
        queue(broker, name, *(f"b{number}{at}" for at in range(number + 1)))
    queue(broker, "interactive", "i")
    queue(broker, lists("interactive.any")[5], "j")
    queue(broker, lists("interactive.embed")[5], "k")
    queue(broker, lists("interactive.m")[9], "l")
    broker.sync.sadd("gaelp:queues", "interactive.m", "batch.other")
    found = waiting_in(app)
    assert of_tiers(found) == {"interactive": 4, "batch": 55, "background": 0}
    assert list(of_tiers(found)) == ["interactive", "batch", "background"]
    assert {name: depth for name, depth in found.items() if depth} == {
        "interactive": 1, "interactive.any": 1, "interactive.embed": 1, "interactive.m": 1, "batch": 55,
    }  # fmt: skip
    assert found["batch.other"] == 0


def test_the_first_sent_is_next(broker):
    queue(broker, "batch", "first", "second", "third")
    assert find_queued(app, "first") == Place("batch", 1)
    assert find_queued(app, "third") == Place("batch", 3)
    assert find_queued(app, "fourth") is None


def test_a_position_counts_the_sub_keys_before_it(broker):
    queue(broker, "batch", "a", "b")
    queue(broker, lists("batch")[6], "c", "d")
    assert find_queued(app, "d") == Place("batch", 4)


def test_a_position_counts_over_pages(broker, monkeypatch):
    monkeypatch.setattr(queued, "PAGE", 3)
    queue(broker, "background", *map(str, range(10)))
    assert [find_queued(app, str(number)).position for number in range(10)] == list(range(1, 11))


def test_junk_in_a_queue_is_passed_over(broker):
    broker.sync.lpush("interactive", "junk", "[]", "5", '{"headers": null}', '{"headers": {}}')
    queue(broker, "interactive", "i")
    assert find_queued(app, "i") == Place("interactive", 6)


def test_the_beginning_of_an_id_stands_for_it_wherever_it_is(broker):
    announce(broker, "a@h", running=("running-1",), unplaced=("unplaced-1",))
    queue(broker, lists("batch.any")[3], "queued-1")
    broker.sync.zadd("gaelp:parked", {"delayed-1": 1.0})
    broker.sync.hset("gaelp:unacked", "tag", '{"id": "claimed-1"}\n{}')
    run_facts(broker, "ended-1", 1)
    for name in ("running-1", "unplaced-1", "queued-1", "delayed-1", "claimed-1", "ended-1"):
        assert whole_id(app, name[:6]) == name
        assert whole_id(app, name[:5]) == name[:5], "too short"
    assert whole_id(app, "nobody") == "nobody"
    assert whole_id(app, "ended-*") == "ended-*", "no pattern"


def test_an_id_that_several_begin_with_is_refused_with_their_names(broker):
    run_facts(broker, "twins-1", 1)
    queue(broker, "batch", "twins-2", "twins-10")
    with pytest.raises(AmbiguousId, match="twins- could be twins-1, twins-10, twins-2: give more"):
        whole_id(app, "twins-")
    assert whole_id(app, "twins-1") == "twins-1", "it is one itself"


def test_what_waits_for_its_time_tells_for_how_long(broker):
    broker.sync.zadd("gaelp:parked", {"i": (time() + 90) * 1000})
    found = describe(app, "i")
    assert (found.state, found.place) == (State.WAITING, None)
    assert re.fullmatch(r"It will be queued when it is due, in (89|90) s.", found.why)


def test_what_a_worker_has_just_claimed_runs(broker):
    broker.sync.hset("gaelp:unacked", "tag", '{"id": "i"}\n{}')
    assert describe(app, "i").state is State.RUNNING


def test_an_id_that_nobody_knows_is_unknown(broker):
    found = describe(app, "i")
    assert (found.state, found.place, found.start, found.end, found.result) == (
        State.UNKNOWN,
        None,
        {},
        {},
        None,
    )
    assert "never accepted" in found.why


def test_a_queued_one_tells_its_place_and_what_it_waits_for(broker):
    queue(broker, "batch", "x", "y", "i")
    assert "No worker is running" in describe(app, "i").why
    announce(broker, "a@h", running=("r",), slots=2)
    announce(broker, "b@h", running=("s", "t"), slots=3)
    found = describe(app, "i")
    assert (found.state, found.place) == (State.QUEUED, Place("batch", 3))
    assert found.why == "2 ahead of it in queue batch; 3 of 5 slots are busy."
    broker.sync.set("gaelp:cancel:i", "user")
    assert "cancelled" in describe(app, "i").why


def sent(broker, key, name, task="gaelp.invoke_agent", **asked):
    """A message as our publisher writes it."""
    body = json.dumps([[], asked, {}])
    told = {"headers": {"id": name, "task": task}, "properties": {"body_encoding": ""}, "body": body}
    broker.sync.sadd("gaelp:queues", key)
    broker.sync.lpush(key, json.dumps(told))


def test_a_queued_one_tells_who_goes_first_and_when_it_starts(broker):
    for name in ("a", "b", "i"):
        sent(broker, "batch.llama_1b", name, model="llama:1b")
    queue(broker, lists("interactive.llama_1b")[3], "c", "d", "e")
    queue(broker, "interactive.other", "f")
    queue(broker, "background.llama_1b", "g")
    told = ModelSlots(model="llama:1b", slots=2, busy=2, phase="loaded", run_s=4.0, why="All 2 slots taken.")
    announce(broker, "a@h", models=("llama:1b",), by_model=(told,))
    found = describe(app, "i")
    assert found.place == Place("batch.llama_1b", 3)
    assert found.why == "5 ahead of it, 3 of them in higher tiers. All 2 slots taken."
    assert (found.expected.start_in_s, found.expected.ahead) == (12.0, 5)
    broker.sync.set("gaelp:cancel:i", "user")
    assert describe(app, "i").expected is None


@pytest.mark.parametrize(
    ("tier", "model", "others", "start_in_s"),
    [
        ("background", "m", 0, 0.0),
        ("background", "", 0, 0.0),
        ("background", "", 1, 20.0),
        ("background", "x", 0, 20.0),
        ("batch", "m", 0, 20.0),
        ("interactive", "m", 0, 20.0),
    ],
)
def test_a_run_of_a_lower_tier_on_its_model_gives_way(broker, tier, model, others, start_in_s):
    sent(broker, "batch.m", "i", model="m")
    by_model = (
        ModelSlots(model="m:latest", slots=1, busy=1, run_s=20.0),
        ModelSlots(model="o:latest", slots=1, busy=others),
    )
    run_facts(broker, "r", 1, agent="chat", tier=tier, model=model)
    announce(broker, "a@h", models=("m:latest", "o:latest"), running=("r",), by_model=by_model)
    assert describe(app, "i").expected.start_in_s == start_in_s


def test_a_model_that_no_node_has_is_named_as_it_was_asked_for(broker):
    announce(broker, "a@h", models=("llama:1b",))
    sent(broker, "batch.a_b_1b", "i", model="a/b:1b")
    assert describe(app, "i").why == "No node has model a/b:1b: `gaelp models pull a/b:1b` fetches it."


def test_an_embedding_is_known_as_one(broker):
    announce(broker, "a@h", models=("m:latest",), slots=4)
    sent(broker, "batch.m", "i", task="gaelp.embed", model="m")
    assert describe(app, "i").expected.start_in_s is None


def test_one_that_was_taken_and_waits_for_its_model_says_so(broker):
    app.backend.store_result("i", {}, "STARTED")
    run_facts(broker, "i", 1, worker="a@h", node="http://n", model="m")
    loading = ModelSlots(model="m:latest", slots=2, busy=1, phase="loading")
    announce(broker, "a@h", running=("i",), tokens=(0,), by_model=(loading,))
    assert describe(app, "i").why == "m:latest is being loaded on http://n."
    announce(broker, "a@h", running=("i",), tokens=(1,), by_model=(loading,))
    assert describe(app, "i").why == "", "it has begun"


def test_a_running_one_tells_the_start_of_its_newest_run(broker):
    app.backend.store_result("i", {}, "STARTED")
    stream(broker, e1_0={"start": {"worker": "old"}}, e1_1={"t": "x"}, e2_0={"start": {"worker": "new"}})
    found = describe(app, "i")
    assert (found.state, found.start, found.end) == (State.RUNNING, {"worker": "new"}, {})
    stream(broker, e2_1={"t": "SECRET"})
    assert describe(app, "i").start == {"worker": "new"}
    assert "SECRET" not in str(describe(app, "i"))


def test_one_that_waits_says_so(broker):
    app.backend.store_result("i", NodeFailed("why"), "RETRY")
    found = describe(app, "i")
    assert found.state is State.WAITING
    assert found.why == "It will be queued when it is due: why."


@pytest.mark.parametrize(("stop_reason", "state"), [("stop", State.DONE), ("cancelled", State.CUT)])
def test_an_ended_one_has_its_result_and_its_end(broker, stop_reason, state):
    app.backend.store_result("i", {"text": "x", "stop_reason": stop_reason}, "SUCCESS")
    stream(broker, e1_0={"start": {"worker": "w"}}, e1_1={"end": {"outcome": "done"}})
    found = describe(app, "i")
    assert (found.state, found.end, found.error) == (state, {"outcome": "done"}, "")
    assert found.result == {"text": "x", "stop_reason": stop_reason}


def test_a_failed_one_has_its_error_and_no_result(broker):
    app.backend.mark_as_failure("i", NodeFailed("The node broke."))
    found = describe(app, "i")
    assert (found.state, found.error, found.result) == (State.FAILED, "The node broke.", None)


@pytest.mark.parametrize(
    "look",
    [
        live_nodes,
        waiting_in,
        lambda app: find_queued(app, "i"),
        lambda app: describe(app, "i"),
        lambda app: whole_id(app, "abcdef"),
    ],
)
def test_without_redis_every_look_says_so(broker, look):
    broker.goes_away()
    with pytest.raises(BrokerUnavailable):
        look(app)
