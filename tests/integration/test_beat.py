"""Beats on a real Redis and a real database: one leads, a due run comes once, an edit counts at once."""

import os
import signal
from contextlib import suppress
from datetime import timedelta
from time import monotonic, time

import pytest
from celery.schedules import schedule as interval

from gaelp_beat.leader import Leader
from gaelp_beat.publishing import Deposed, Press, Run
from gaelp_beat.schedule import STATIC
from gaelp_beat.scheduler import TICK_S, Scheduler
from gaelp_tasks.connections import unavailable
from gaelp_tasks.db.schedules import Timetable
from gaelp_tasks.due import Fire
from support.beat import BeatProcess
from support.beats import Place, fixed, now, ticking
from support.eventually import eventually

pytestmark = [pytest.mark.redis]


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


def test_runs_are_counted_once_with_how_late_they_were_and_when_schedules_were_read(place):
    began_ms = int(time() * 1000)
    kept = place.add()
    press = Press(place.redis, place.keys, now=lambda: 7.5)
    lease = Leader(place.redis, place.keys).lead().lease
    for due_ms in (5000, 5000, 9000):  # the second was published before; the third is not late at all
        with press.printing(Run("a", due_ms, due_ms, lease)):
            press.put("batch.nowhere", {})
    assert place.redis.hmget(place.keys.counts, "scheduled", "scheduled_late_ms") == ["2", "2500"]
    place.redis.delete(place.keys.beat)
    ticking(place.beat(), until=place.ids)
    assert int(place.redis.hget(place.keys.counts, "scheduled")) > 2
    assert int(place.redis.get(place.keys.beat_read)) >= began_ms
    assert kept.next_due


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


def test_an_entry_that_puts_nothing_into_a_list_has_had_its_turn(place):
    beat = place.beat(fixed("silent", 0.2))
    beat._apply = lambda entry: None  # as a fan-out, or a task that only runs where no other one does
    key = place.keys.beat_published
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
