"""Beats on a real Redis and a real database: one leads, a due run comes once, an edit counts at once."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic, time

import pytest
from celery.schedules import schedule as interval

from gaelp_beat.leader import Leader
from gaelp_beat.publishing import Deposed, Press, Run
from gaelp_beat.schedule import STATIC
from gaelp_beat.scheduler import TICK_S, Scheduler
from gaelp_tasks import app as session_app
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import unavailable
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.schedules import Schedules, Timetable
from gaelp_tasks.due import Fire
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.queues import lists
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.scheduled import goes_on
from support.beat import BeatProcess
from support.eventually import eventually

pytestmark = [pytest.mark.redis]

NEVER = timedelta(days=300)


def now():
    return datetime.now(UTC)


def fixed(name, every_s, **more):
    """Entries of beat_schedule."""
    return {name: {"task": "shop.count", "schedule": every_s, "options": {"queue": "shop"}, **more}}


class Place:
    """A Redis, a database, and any number of beats in this process."""

    def __init__(self, url, folder, namespace=""):
        self.settings = Settings(
            broker_url=url, namespace=namespace, database_url=f"sqlite:///{folder / 'gaelp.db'}"
        )
        self._loop = asyncio.Runner()
        self._db = Database(self.settings.sql_url)
        self._loop.run(self._db.migrate())
        self._beats = []
        self.app = self._app({})
        self.redis, self.keys = self.app.redis, self.app.keys

    def _app(self, entries):
        made = GaelpApp(self.settings)
        made.conf.beat_schedule = entries
        return made

    def ask(self, question, tenant=""):
        return self._loop.run(question(Schedules(self._db, tenant)))

    def timetable(self, question):
        return self._loop.run(question(Timetable(self._db)))

    def add(self, tenant="", **given):
        timing = {} if {"cron", "at"} & given.keys() else {"interval_s": 1}
        schedule = Schedule.parse({"name": "x", "task": "shop.count", "queue": "shop", **timing, **given})
        return self.ask(lambda schedules: schedules.add(schedule, now()), tenant)

    def change(self, name, **given):
        there = self.find(name).schedule
        new = Schedule.parse(there.model_dump() | given)
        return self.ask(lambda schedules: schedules.change(name, new, now()))

    def find(self, name="x"):
        return self.ask(lambda schedules: schedules.find(name))

    def beat(self, entries=None):
        made = Scheduler(self._app(entries or {}))
        self._beats.append(made)
        return made

    def published(self, queue="shop"):
        """Every message in the queue, the first first."""
        places = map(self.keys.queue, lists(queue))
        return [json.loads(text) for key in places for text in reversed(self.redis.lrange(key, 0, -1))]

    def ids(self, queue="shop"):
        return [message["headers"]["id"] for message in self.published(queue)]

    def close(self):
        for beat in self._beats:
            beat.close()
        self._loop.run(self._db.close())
        self._loop.close()
        self.redis.close()


@pytest.fixture
def place(broker, tmp_path):
    session_app.redis.flushdb()
    made = Place(broker.url, tmp_path)
    yield made
    made.close()
    session_app.set_current()


def ticking(*beats, until, within_s=20.0):
    """Have these beats tick in turn until something is true."""

    def step():
        for beat in beats:
            beat.tick()
        return until()

    return eventually(step, within_s=within_s)


def test_a_due_run_is_published_once_with_the_id_of_its_time(place):
    kept = place.add(kwargs={"n": 1}, args=["a"], expires_s=60)
    beats = [place.beat(), place.beat()]
    ticking(*beats, until=lambda: len(place.ids()) >= 3)
    ids = place.ids()
    assert len(set(ids)) == len(ids)
    first = kept.schedule.interval_s and kept.next_due
    assert ids[:3] == [kept.run_id(first + timedelta(seconds=n)) for n in range(3)]
    message = place.published()[0]
    assert message["headers"]["task"] == "shop.count"
    assert message["headers"]["expires"] == (first + timedelta(seconds=60)).isoformat()
    assert message["headers"]["celery_beat_task"] is True
    there = place.find()
    assert there.last_task == ids[len(ids) - 1]
    assert there.standing.until == there.last_due


def test_entries_of_celerys_kind_go_on_where_another_beat_left_off(place):
    entries = fixed("count", 1.0)
    first = place.beat(entries)
    ticking(first, until=lambda: len(place.ids()) == 2)
    first.close()
    second = place.beat(entries)
    began = monotonic()
    ticking(second, until=lambda: len(place.ids()) == 3)
    assert monotonic() - began < 5
    assert len(set(place.ids())) == 3
    assert place.redis.hget(place.keys.beat_published, "fixed:count")


def test_the_static_table_is_published_too(place, monkeypatch):
    monkeypatch.setattr(
        "gaelp_beat.scheduler.STATIC", {name: {**one, "schedule": 0.2} for name, one in STATIC.items()}
    )
    beat = place.beat()
    ticking(beat, until=lambda: place.ids("system"))
    assert {message["headers"]["task"] for message in place.published("system")} == {
        one["task"] for one in STATIC.values()
    }


def test_an_entry_that_cannot_be_published_keeps_no_other_from_its_turn(place):
    unfit = fixed("unfit", 0.1, args=[object()])
    beat = place.beat({**unfit, **fixed("fit", 0.1)})
    ticking(beat, until=lambda: len(place.ids()) >= 2)
    assert "Entry 'unfit'" in beat._troubles


def test_a_namespace_is_before_every_key(place, broker, tmp_path):
    other = Place(broker.url, tmp_path, namespace="two.")
    try:
        other.add()
        ticking(other.beat(), place.beat(), until=other.ids)
        assert place.ids() != other.ids(), "two clusters on one database is not what this is about"
        keys = {str(key) for key in other.redis.scan_iter()}
        assert {
            "two.gaelp:beat:leader",
            "two.gaelp:beat:fence",
            "two.gaelp:beat:published",
            "two.shop",
        } <= keys
    finally:
        other.close()


def test_one_beat_leads_until_it_resigns(place):
    first, second = (Leader(place.redis, place.keys) for _ in range(2))
    term = first.lead()
    assert term is not None
    assert second.lead() is None
    again = first.lead()
    assert again is not None
    assert (again.fence, again.lease) == (term.fence, term.lease)
    assert abs(again.now_ms / 1000 - time()) < 5
    second.resign()  # it has nothing to give back
    assert second.lead() is None
    first.resign()
    after = second.lead()
    assert after is not None
    assert after.fence > term.fence


def test_the_fence_grows_over_a_redis_that_was_emptied(place):
    leader = Leader(place.redis, place.keys)
    before = leader.lead()
    eventually(lambda: place.redis.flushdb() and leader.lead().fence > before.fence)


def test_the_lease_of_a_beat_that_stood_still_ends_by_itself(place):
    first = Leader(place.redis, place.keys, ttl_s=0.2)
    second = Leader(place.redis, place.keys)
    first.lead()
    assert eventually(second.lead, within_s=5)
    assert first.lead() is None


def run_of(leader, due_ms):
    return Run("s", due_ms, due_ms, leader.lead().lease)


def publish(place, press, run):
    with place.app.connection_for_write() as connection:
        producer = place.app.amqp.Producer(press.fit(connection), auto_declare=False)
        with press.printing(run):
            place.app.send_task("shop.count", queue="shop", producer=producer)


def test_what_was_published_is_not_published_again_even_when_it_was_taken_meanwhile(place):
    leader, press = Leader(place.redis, place.keys), Press(place.redis, place.keys)
    publish(place, press, run_of(leader, 1000))
    publish(place, press, run_of(leader, 1000))
    assert len(place.ids()) == 1
    place.redis.delete("shop")
    publish(place, press, run_of(leader, 1000))
    publish(place, press, run_of(leader, 999))
    assert place.ids() == []
    publish(place, press, run_of(leader, 1001))
    assert len(place.ids()) == 1


def test_a_connection_that_kombu_switches_to_the_next_place_keeps_its_press(place, broker):
    leader, press = Leader(place.redis, place.keys), Press(place.redis, place.keys)
    connection = press.fit(place.app.connection_for_write(f"{broker.url};{broker.url}"))
    for _ in range(2):
        connection.switch(broker.url)
        producer = place.app.amqp.Producer(connection, auto_declare=False)
        with press.printing(run_of(leader, 1000)):
            place.app.send_task("shop.count", queue="shop", producer=producer)
    connection.release()
    assert len(place.ids()) == 1


def test_a_deposed_beat_publishes_nothing_and_writes_nothing(place):
    kept = place.add(interval_s=1000)
    old, new, press = (
        Leader(place.redis, place.keys),
        Leader(place.redis, place.keys),
        Press(place.redis, place.keys),
    )
    stale = run_of(old, 1000)
    stale_term = old.lead()
    place.redis.delete(place.keys.beat)  # it ended while the old one stood still
    term = new.lead()
    with pytest.raises(Deposed):
        publish(place, press, stale)
    assert place.ids() == []
    due = Fire(now(), cancel=False)
    assert place.timetable(lambda at: at.note(kept, due, now(), term.fence))
    assert not place.timetable(lambda at: at.note(kept, due, now(), term.fence)), "it was decided"
    there = place.find()
    later = Fire(now(), cancel=False)
    assert not place.timetable(lambda at: at.note(there, later, now(), stale_term.fence))
    assert place.find() == there


def test_a_run_that_was_published_and_not_noted_is_published_once(place, monkeypatch):
    kept = place.add(at=(now() + timedelta(seconds=0.5)).isoformat())
    first, second = place.beat(), place.beat()

    class Killed(BaseException):
        pass

    async def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Timetable, "note", die)
        with pytest.raises(Killed):
            ticking(first, until=lambda: False)
    assert len(place.ids()) == 1
    assert place.find().standing == kept.standing, "SQL knows nothing of it"
    place.redis.delete(place.keys.beat)  # the lease of a dead one ends
    ticking(second, until=lambda: place.find().last_due)
    assert place.ids() == [kept.run_id(kept.next_due)]


def test_an_edit_counts_from_the_next_tick(place):
    place.add(at=(now() + NEVER).isoformat())
    beat = place.beat()
    beat.tick()
    soon = now() + timedelta(seconds=0.2)
    place.change("x", at=soon)
    ticking(beat, until=place.ids)
    assert (now() - soon).total_seconds() < 2 * TICK_S + 2
    assert place.find().next_due is None


def test_a_paused_one_is_not_published_and_nothing_is_made_up_for_when_it_goes_on(place):
    place.add(missed="all", overlap="queue")
    beat = place.beat()
    ticking(beat, until=place.ids)
    place.ask(lambda schedules: schedules.pause("x", now(), paused=True))
    count, until = len(place.ids()), monotonic() + 2.5
    ticking(beat, until=lambda: monotonic() > until)
    assert len(place.ids()) == count
    place.ask(lambda schedules: schedules.pause("x", now(), paused=False))
    resumed = now()
    ticking(beat, until=lambda: len(place.ids()) > count)
    assert place.find().last_due > resumed


def test_one_that_waits_for_a_quiet_moment_is_published_when_it_comes(place):
    place.add(at=(now() + timedelta(seconds=0.2)).isoformat(), only_when_idle=True)
    place.redis.lpush("interactive", "{}")
    beat = place.beat()
    ticking(beat, until=lambda: place.find().standing.waiting)
    assert place.ids() == []
    place.redis.delete("interactive")
    ticking(beat, until=place.ids)
    assert place.find().standing.waiting is None


@pytest.mark.parametrize(("overlap", "count"), [("skip", 1), ("queue", 1), ("cancel", 2)])
def test_a_run_that_overlaps_is_left_out_waits_or_takes_the_place_of_the_old_one(place, overlap, count):
    place.add(queue="batch", overlap=overlap)
    beat = place.beat()
    ticking(beat, until=lambda: place.ids("batch"))
    first = place.ids("batch")[0]
    until = monotonic() + 2.2
    ticking(beat, until=lambda: monotonic() > until)
    there = place.find()
    if overlap == "cancel":
        assert len(place.ids("batch")) >= count
        assert place.redis.exists(place.keys.cancel(first))
        return
    assert place.ids("batch") == [first]
    assert (there.standing.waiting is not None) == (overlap == "queue")
    place.redis.delete("batch")  # it is over: nobody holds it, and it has no result
    ticking(beat, until=lambda: place.ids("batch"))


def test_a_task_goes_on_while_it_is_parked_held_or_started_and_no_longer(place):
    app, redis, keys = place.app, place.redis, place.keys
    assert not goes_on(app, "a"), "nobody knows it"
    redis.zadd(keys.parked, {"a": 1})
    assert goes_on(app, "a")
    redis.delete(keys.parked)
    redis.set(keys.holder("a"), "tag")
    assert not goes_on(app, "a"), "it was held once"
    redis.zadd(keys.leases, {"tag": 1})
    assert goes_on(app, "a")
    redis.delete(keys.leases)
    redis.set("celery-task-meta-a", json.dumps({"status": "STARTED", "result": None}))
    assert goes_on(app, "a")
    redis.set("celery-task-meta-a", json.dumps({"status": "SUCCESS", "result": "told"}))
    redis.zadd(keys.parked, {"a": 1})  # a second message of it, which finds the result
    assert not goes_on(app, "a")


def test_the_tenants_have_their_own_names_and_beat_serves_them_all(place):
    for tenant in ("", "acme"):
        place.add(tenant=tenant)
    assert [kept.tenant for kept in place.ask(lambda schedules: schedules.listed(), "acme")] == ["acme"]
    ticking(place.beat(), until=lambda: len(place.ids()) >= 2)
    place.ask(lambda schedules: schedules.remove("x"), "acme")
    assert place.find() is not None


def test_an_invocation_goes_to_its_model_in_its_tier_with_its_tenant(place, monkeypatch):
    mine = Schedule.parse(
        {
            "name": "x",
            "interval_s": 1,
            "kwargs": {"prompt": "hi", "model": "llama3.2:3b"},
            "tier": "background",
        }
    )
    place.ask(lambda schedules: schedules.add(mine, now()), "acme")
    monkeypatch.setitem(session_app.__dict__, "settings", place.settings)  # it has our tasks
    beat = Scheduler(session_app)
    place._beats.append(beat)
    ticking(beat, until=lambda: place.ids("background.llama3.2_3b"))
    assert not beat._troubles
    headers = place.published("background.llama3.2_3b")[0]["headers"]
    assert headers["gaelp_tenant"] == "acme"
    assert "hi" not in json.dumps(headers)


def test_beat_lives_on_while_redis_is_away(place, broker):
    place.add(at=(now() + timedelta(seconds=0.1)).isoformat())
    beat = place.beat()
    assert place.redis.ping()
    broker.stop()
    try:
        assert beat.tick() == TICK_S
    finally:
        broker.start()

    def answers():
        with suppress(*unavailable):  # it reads its file first
            return place.redis.ping()

    eventually(answers)
    ticking(beat, until=place.ids)


def test_a_schedule_that_cannot_be_decided_on_keeps_no_other_from_its_turn(place, monkeypatch):
    """The result record of another service's task may hold anything."""

    def spoiled(app, task_id):
        raise TypeError("a record of its own kind")

    monkeypatch.setattr("gaelp_beat.scheduler.goes_on", spoiled)
    place.add(name="broken")
    beat = place.beat()
    ticking(beat, until=lambda: "Schedule 'broken'" in beat._troubles)
    place.add(name="whole")
    before = len(place.ids())
    ticking(beat, until=lambda: len(place.ids()) > before)


def test_an_entry_that_puts_nothing_into_a_list_has_had_its_turn(place):
    beat = place.beat(fixed("silent", 0.2))
    beat._apply = lambda entry: None  # as a fan-out, or a task that only runs where no other one does
    key = session_app.keys.beat_published
    first = eventually(lambda: beat.tick() and place.redis.hget(key, "fixed:silent"))
    eventually(lambda: beat.tick() and place.redis.hget(key, "fixed:silent") != first)


def test_beat_lives_on_without_its_database(place, tmp_path):
    broken = place._app(fixed("count", 0.1))
    folder = tmp_path / "gaelp-file"
    folder.mkdir()
    broken._given = place.settings.model_copy(update={"database_url": f"sqlite:///{folder}"})
    beat = Scheduler(broken)
    place._beats.append(beat)
    ticking(beat, until=lambda: len(place.ids()) >= 2)
    assert "SQL" in beat._troubles


def test_what_another_release_wrote_is_passed_over(place):
    place.add(name="ours")
    place.add(name="theirs")

    async def spoil(schedules):
        async with schedules._db.writing() as session:
            row = await schedules._row(session, "theirs")
            row.spec = {**row.spec, "of_the_future": True}

    place.ask(spoil)
    ticking(place.beat(), until=lambda: len(place.ids()) >= 2)
    assert place.find("ours").last_task in place.ids()


@pytest.mark.slow
class TestPrograms:
    """Real beats in processes of their own."""

    @pytest.fixture
    def beats(self, place, broker, tmp_path):
        with (
            BeatProcess(tmp_path, name="a", GAELP_BROKER_URL=broker.url) as first,
            BeatProcess(tmp_path, name="b", GAELP_BROKER_URL=broker.url) as second,
        ):
            yield first, second

    def leader(self, place, beats):
        lease = eventually(lambda: place.redis.get(place.keys.beat), what="one leads")
        return next(beat for beat in beats if f":{beat.pid}:" in lease)

    def test_the_other_beat_goes_on_at_once_when_one_is_stopped(self, place, beats):
        place.add()
        eventually(place.ids)
        leads = self.leader(place, beats)
        assert leads.stop() == 0, leads.log()
        count, began = len(place.ids()), monotonic()
        eventually(lambda: len(place.ids()) > count, within_s=10)
        assert monotonic() - began < 4
        assert len(set(place.ids())) == len(place.ids())

    def test_a_frozen_leader_is_deposed_and_comes_back_as_a_standby(self, place, beats):
        place.add()
        # not in the middle of a write, which would keep SQLite's lock (docs/schedules.md)
        eventually(lambda: place.find().last_due)
        frozen = self.leader(place, beats)
        os.kill(frozen.pid, signal.SIGSTOP)
        other = next(beat for beat in beats if beat is not frozen)
        eventually(lambda: f":{other.pid}:" in (place.redis.get(place.keys.beat) or ""), within_s=10)
        count = len(place.ids())
        eventually(lambda: len(place.ids()) > count, what=other.log())
        os.kill(frozen.pid, signal.SIGCONT)
        eventually(lambda: "Another beat leads by now" in frozen.log(), within_s=10)
        ids = place.ids()
        assert len(set(ids)) == len(ids)
        assert f":{other.pid}:" in place.redis.get(place.keys.beat)


def test_kombu_still_has_the_names_that_the_press_touches(place):
    """Private: Channel._put, _q_for_pri, _get_message_priority, global_keyprefix."""
    with place.app.connection_for_write() as connection:
        channel = connection.channel()
        for name in ("_put", "_q_for_pri", "_get_message_priority", "global_keyprefix"):
            assert hasattr(channel, name), name
    assert interval(1).run_every == timedelta(seconds=1)
