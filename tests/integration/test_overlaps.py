"""Whether the run before is over, on a real Redis, and what becomes of a run that is due while it is not."""

import json
import socket
from itertools import count
from time import monotonic

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from gaelp_beat import previous as module
from gaelp_beat.previous import AWAY_S, BELIEVED_S, Previous, ResultsAway, queues_of
from gaelp_tasks.models.schedule import Schedule
from support.beats import Place, ticking

pytestmark = [pytest.mark.redis]

MANY = 25_000


def schedule(**given):
    return Schedule.parse({"name": "x", "interval_s": 1, "task": "shop.count", **given})


THEIRS, OURS = schedule(queue="shop"), schedule(queue="batch")


class Clock:
    """Stands still."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def previous(place, clock):
    return Previous(place.app, place.redis, answer_s=1.0, tick=clock)


@pytest.fixture
def goes_on(previous):
    """Whether a run goes on, as one who has never looked before finds out."""
    fresh = count()
    return lambda task_id, of=OURS: previous.goes_on(f"schedule {next(fresh)}", task_id, of)


@pytest.fixture
def message(place):
    """The message of a task, as it lies in a list."""

    def made(task_id, **more):
        place.app.send_task("shop.count", queue="batch", task_id=task_id, **more)
        return place.redis.rpop("batch")

    return made


@pytest.mark.parametrize(("overlap", "times"), [("skip", 1), ("queue", 1), ("cancel", 2)])
def test_a_run_that_overlaps_is_left_out_waits_or_takes_the_place_of_the_old_one(place, overlap, times):
    place.add(queue="batch", overlap=overlap)
    beat = place.beat()
    ticking(beat, until=lambda: place.ids("batch"))
    first = place.ids("batch")[0]
    until = monotonic() + 2.2
    ticking(beat, until=lambda: monotonic() > until)
    there = place.find()
    if overlap == "cancel":
        assert len(place.ids("batch")) >= times
        assert place.redis.exists(place.keys.cancel(first))
        return
    assert place.ids("batch") == [first]
    assert (there.standing.waiting is not None) == (overlap == "queue")
    place.redis.rename("batch", "elsewhere")
    place.redis.set(place.keys.claims(first), 1)  # taken, and over: nobody holds it, and it has no result
    ticking(beat, until=lambda: place.ids("batch"))


def test_a_task_of_others_goes_on_while_its_record_says_so(place, goes_on):
    assert not goes_on("a", THEIRS), "nobody knows it"
    record = "celery-task-meta-a"
    place.redis.set(record, json.dumps({"status": "STARTED", "result": None}))
    assert goes_on("a", THEIRS)
    for damaged in ("{", "[]", '{"status": 5}', "[" * 10_000):
        place.redis.set(record, damaged)
        assert not goes_on("a", THEIRS)
    place.redis.set(record, json.dumps({"status": "FAILURE", "result": None}))
    assert not goes_on("a", THEIRS)


def test_a_task_goes_on_while_it_is_parked_or_held_and_no_longer(place, goes_on):
    redis, keys = place.redis, place.keys
    assert not goes_on("a"), "nobody knows it"
    redis.zadd(keys.parked, {"a": 1})
    assert goes_on("a")
    redis.delete(keys.parked)
    redis.set(keys.holder("a"), "tag")
    assert not goes_on("a"), "it was held once"
    redis.zadd(keys.leases, {"tag": 1})
    assert goes_on("a")
    redis.delete(keys.leases)
    redis.set("celery-task-meta-a", json.dumps({"status": "STARTED", "result": None}))
    assert not goes_on("a"), "its worker has died, and its message is gone"
    redis.set("celery-task-meta-a", json.dumps({"status": "SUCCESS", "result": "told"}))
    redis.zadd(keys.parked, {"a": 1})  # a second message of it, which finds the result
    assert not goes_on("a")


@pytest.mark.parametrize("place_of_it", ["batch", "batch\x06\x163", "batch.m_1b\x06\x169", "gaelp:suspects"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_task_goes_on_wherever_it_waits_behind_however_many(place, goes_on, message, place_of_it, end):
    redis = place.redis
    redis.sadd(place.keys.queues, "batch.m_1b", "interactive.m_1b")
    redis.lpush(place_of_it, *['{"headers": {}}'] * MANY)
    {"first": redis.rpush, "last": redis.lpush}[end](place_of_it, message("a"))
    assert goes_on("a")
    assert not goes_on("b")
    redis.delete(place_of_it)
    assert not goes_on("a")


def test_a_task_that_only_has_to_do_with_it_is_another(place, goes_on, message):
    place.redis.lpush("batch", message("b", root_id="a", parent_id="a", kwargs={"id": "a"}))
    assert goes_on("b")
    assert not goes_on("a")


def test_one_that_was_seen_waiting_is_searched_for_again_when_it_was_taken_or_after_a_while(
    place, previous, message, clock, monkeypatch
):
    searched = []
    search = previous._search
    monkeypatch.setattr(previous, "_search", lambda **how: searched.append(how["keys"]) or search(**how))

    def looks():
        before = len(searched)
        assert previous.goes_on("s", "a", OURS)
        return len(searched) > before

    place.redis.lpush("batch", message("a"))
    assert [looks() for _ in range(3)] == [True, False, False]
    place.redis.incr(place.keys.claims("a"))  # taken, and given back
    assert [looks() for _ in range(2)] == [True, False]
    place.redis.delete("batch")  # purged
    clock.now += BELIEVED_S
    assert not previous.goes_on("s", "a", OURS)
    place.redis.lpush("batch", message("a"))
    assert not previous.goes_on("s", "a", OURS), "what is over stays so"
    assert previous.goes_on("s", "b", OURS) is False
    place.redis.lpush("batch", message("c"))
    assert previous.goes_on("s", "c", OURS)


def test_one_that_is_taken_while_it_is_searched_for_goes_on(place, previous, message, monkeypatch):
    def taken(**_):
        place.redis.set(place.keys.holder("a"), "tag")
        place.redis.zadd(place.keys.leases, {"tag": 1})
        return -2

    monkeypatch.setattr(previous, "_search", taken)
    place.redis.lpush("batch", message("b"))
    assert previous.goes_on("s", "a", OURS)


def test_a_search_gives_way_after_some_bytes_and_goes_on_there(place, goes_on, message, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    monkeypatch.setattr(module, "BYTES", 10)
    place.redis.rpush("batch", *["x" * 9] * 50, message("a"), *["x" * 9] * 50)
    assert goes_on("a")
    assert not goes_on("b")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"queue": "shop"}, []),
        ({}, []),
        ({"queue": "system"}, ["system"]),
        ({"task": "gaelp.maintenance.prune_history"}, ["system"]),
        ({"queue": "batch"}, ["batch", "batch.any", "batch.embed", "batch.m"]),
        ({"tier": "batch"}, ["batch", "batch.any", "batch.embed", "batch.m"]),
        ({"task": "gaelp.embed", "kwargs": {"input": "a"}, "tier": "background"},
         ["background", "background.any", "background.embed"]),
    ],
)  # fmt: skip
def test_runs_are_looked_for_where_their_schedule_puts_them(given, found):
    assert queues_of(schedule(**given), {"batch.m", "interactive.m"}) == found


@pytest.fixture
def silent():
    """The address of a Redis that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@pytest.fixture
def apart(broker, redis, tmp_path, silent):
    """A place whose results are in that Redis."""
    made = Place(broker.url, tmp_path, result_backend=silent)
    yield made
    made.close()


def test_results_in_a_redis_that_is_away_are_missed_only_where_nothing_else_tells(apart, clock, monkeypatch):
    previous = Previous(apart.app, apart.redis, answer_s=0.2, tick=clock)
    asked = []

    def away(key):
        asked.append(key)
        raise RedisConnectionError("gone")

    monkeypatch.setattr(previous._results, "get", away)
    for _ in range(3):
        with pytest.raises(ResultsAway):
            previous.goes_on("theirs", "a", THEIRS)
    assert not previous.goes_on("ours", "b", OURS), "its message is gone, and nobody holds it"
    assert len(asked) == 1, "not each time"
    assert previous.trouble == "gone"
    clock.now += AWAY_S
    monkeypatch.setattr(previous._results, "get", lambda _: json.dumps({"status": "STARTED"}))
    assert previous.goes_on("theirs", "a", THEIRS)
    assert previous.trouble == ""


def test_beat_goes_on_while_the_redis_of_results_is_away(apart):
    apart.add(name="asks")
    beat, longest = apart.beat(), 0.0

    def until(true):
        def look():
            nonlocal longest
            began = monotonic()
            beat.tick()
            longest = max(longest, monotonic() - began)
            return true()

        ticking(until=look)

    until(lambda: apart.find("asks").standing.waiting)
    assert apart.find("asks").last_task in apart.ids()
    assert "Results" in beat._troubles
    apart.add(name="does not")
    until(lambda: apart.find("does not").last_task)
    assert longest < 3.0, "the lease lives as long"
