"""Schedules in SQL as beat serves them: edits, pauses, quiet moments, tenants, and what it cannot read."""

import json
from datetime import timedelta
from time import monotonic

import pytest

from gaelp_beat.previous import Previous
from gaelp_beat.scheduler import TICK_S, Scheduler
from gaelp_tasks import app as session_app
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.tasks.scheduled import is_idle
from support.beats import now, ticking

pytestmark = [pytest.mark.redis]

NEVER = timedelta(days=300)


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


@pytest.mark.parametrize(("told", "waits"), [("interactive", True), ("", True), ("batch", False)])
def test_what_runs_in_a_higher_tier_or_does_not_tell_its_tier_is_no_quiet_moment(place, told, waits):
    node = NodeSnapshot(
        worker="w@h", pid=1, url="http://n:11434", healthy=True, slots=2, running=("a",),
        started_at=1.0, seen_at=1.0, memory=MemorySnapshot(total_bytes=2, free_bytes=1, source="test"),
    )  # fmt: skip
    place.redis.set(place.keys.node(node.worker, node.url), node.model_dump_json())
    place.redis.set(place.keys.claims("a"), 1)
    if told:
        place.redis.xadd(place.keys.stream("a"), {"start": json.dumps({"tier": told})}, id="1-0")
    assert is_idle(place.app, (Tier.INTERACTIVE,)) is not waits


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


def test_a_schedule_that_cannot_be_decided_on_keeps_no_other_from_its_turn(place, monkeypatch):
    """The result record of another service's task may hold anything."""

    def spoiled(*_):
        raise TypeError("a record of its own kind")

    monkeypatch.setattr(Previous, "goes_on", spoiled)
    place.add(name="broken")
    beat = place.beat()
    ticking(beat, until=lambda: "Schedule 'broken'" in beat._troubles)
    place.add(name="whole")
    before = len(place.ids())
    ticking(beat, until=lambda: len(place.ids()) > before)


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
