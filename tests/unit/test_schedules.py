"""What a schedule may be: each refusal is one sentence."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Hours, InvalidSchedule, Schedule, Window

BASE = {"name": "nightly", "kwargs": {"prompt": "Sum up the day."}, "cron": "0 2 * * *"}
PRIVATE = "what nobody may read in a log"


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cron": None}, "give one of cron, interval_s and at"),
        ({"interval_s": 60}, "give one of cron, interval_s and at"),
        ({"cron": "0 2 * *"}, "write five fields"),
        ({"cron": "0 0 2 * * *"}, "write five fields"),
        ({"cron": "61 2 * * *"}, "bad minute"),
        ({"cron": "0 0 31 2 *"}, "bad day-of-month"),
        ({"cron": "@often"}, "write five fields"),
        ({"zone": "Mars/Olympus"}, "no such time zone"),
        ({"zone": "../../etc/passwd"}, "no such time zone"),
        ({"cron": None, "interval_s": 0.1}, "interval_s: "),
        ({"cron": None, "at": "2026-01-01T00:00:00"}, "at: "),
        ({"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, "end: it must come after start"),
        ({"name": ""}, "name: "),
        ({"name": "-x"}, "printable characters"),
        ({"name": "a\nb"}, "printable characters"),
        ({"queue": "batch", "tier": "batch"}, "either queue or tier"),
        ({"tier": "interactive", "only_when_idle": True}, "no tier is higher"),
        ({"tier": "urgent"}, "tier: "),
        ({"missed": "never"}, "missed: "),
        ({"overlap": "both"}, "overlap: "),
        ({"expires_s": 0}, "expires_s: "),
        ({"kwargs": {}}, "the prompt is empty"),
        ({"kwargs": {"prompt": PRIVATE, "idempotency_key": "k"}}, "leave idempotency_key out"),
        ({"kwargs": {"prompt": PRIVATE, "tier": "batch"}}, "leave tier out"),
        ({"kwargs": {"prompt": PRIVATE, "tenant": "a"}}, "leave tenant out"),
        ({"kwargs": {"prompt": PRIVATE, "colour": "red"}}, "does not know colour"),
        ({"kwargs": {"prompt": PRIVATE, "priority": 11}}, "priority: "),
        ({"args": [PRIVATE]}, "named arguments only"),
        ({"task": "gaelp.embed"}, "does not know prompt"),
        ({"windows": [{"start": "22:00", "end": "06:00", "days": []}]}, "days: "),
        ({"surprise": 1}, "surprise: "),
        ({"start": "0001-01-01T00:00:00+14:00"}, "start: take a year from 1970 to 9000"),
        ({"end": "9999-12-31T23:59:59-14:00"}, "end: take a year from 1970 to 9000"),
        ({"cron": None, "at": "9999-12-31T23:59:59Z"}, "at: take a year from 1970 to 9000"),
        ({"windows": [{"start": "22:00Z", "end": "06:00"}]}, "leave the offset out"),
        ({"windows": [{"start": "22:00", "end": "06:00-02:00"}]}, "leave the offset out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(wrong, said):
    with pytest.raises(InvalidSchedule) as refused:
        Schedule.parse({**BASE, **wrong})
    sentence = str(refused.value)
    assert said.lower() in sentence.lower()
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert PRIVATE not in sentence


def test_a_schedule_survives_its_way_through_json():
    schedule = Schedule.parse(
        {
            **BASE,
            "zone": "Europe/Berlin",
            "start": "2026-01-01T00:00:00+01:00",
            "windows": [Window.parse("mon-fri 22:00-06:00")],
            "overlap": "cancel",
            "expires_s": 60.5,
        }
    )
    assert Schedule.parse(schedule.wire()) == schedule
    assert Schedule.parse(Schedule.parse(BASE).wire()) == Schedule.parse(BASE)


@pytest.mark.parametrize(
    ("given", "tier", "higher"),
    [
        ({}, Tier.BATCH, ["interactive"]),
        ({"tier": "background"}, Tier.BACKGROUND, ["interactive", "batch"]),
        ({"queue": "background.llama"}, Tier.BACKGROUND, ["interactive", "batch"]),
        ({"task": "shop.reindex", "kwargs": {}}, None, ["interactive", "batch", "background"]),
        ({"task": "shop.reindex", "kwargs": {}, "tier": "batch"}, Tier.BATCH, ["interactive"]),
        ({"task": "gaelp.embed", "kwargs": {"input": "a"}}, Tier.BATCH, ["interactive"]),
    ],
)
def test_scheduled_work_is_batch_unless_it_says_otherwise(given, tier, higher):
    schedule = Schedule.parse({**BASE, **given})
    assert schedule.counts_as == tier
    assert list(schedule.higher) == higher


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (
            "22:00-06:00",
            ["2026-11-20T22:00", "2026-11-20T05:59:59"],
            ["2026-11-20T06:00", "2026-11-20T21:59"],
        ),
        (
            "fri 22:00-06:00",
            ["2026-11-20T23:00", "2026-11-21T05:00"],
            ["2026-11-20T05:00", "2026-11-21T23:00"],
        ),
        ("sun 22:00-06:00", ["2026-11-22T22:00", "2026-11-23T05:00"], ["2026-11-22T05:00"]),
        ("mon-fri 08:00-18:00", ["2026-11-20T08:00"], ["2026-11-20T18:00", "2026-11-21T12:00"]),
        ("fri-mon 00:00-24:00", ["2026-11-21T12:00", "2026-11-23T23:59"], ["2026-11-24T00:00"]),
        ("18:00-24:00", ["2026-11-20T23:59"], ["2026-11-20T00:00"]),
        ("sat,mon 00:00-00:00", ["2026-11-21T00:00", "2026-11-23T12:00"], ["2026-11-22T12:00"]),
    ],
)
def test_a_window_holds_what_lies_in_it(text, inside, outside):
    window = Window.parse(text)
    assert all(window.holds(at(moment)) for moment in inside)
    assert not any(window.holds(at(moment)) for moment in outside)
    assert Window.parse(str(window)) == window


@pytest.mark.parametrize(
    "text", ["", "22:00", "nights", "xyz 22:00-06:00", "mon-fri", "25:00-26:00", "1-2-3", "22:00+01-06:00"]
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(InvalidSchedule, match=r"write one as '22:00-06:00'"):
        Window.parse(text)


def test_a_window_opens_at_its_next_start():
    schedule = Schedule.parse({**BASE, "windows": [Window.parse("sat 22:00-06:00")]})
    assert schedule.opens(at("2026-11-20T12:00")) == at("2026-11-21T22:00")
    assert schedule.opens(at("2026-11-21T22:00")) == at("2026-11-21T22:00")
    assert schedule.opens(at("2026-11-21T22:00:01")) == at("2026-11-28T22:00")
    assert schedule.windows == (Window(start=time(22), end=time(6), days=("sat",)),)


def test_a_window_that_begins_in_a_gap_opens_behind_it_and_one_in_an_hour_that_comes_twice_does_so_twice():
    window, berlin = Window.parse("02:30-05:00"), ZoneInfo("Europe/Berlin")
    assert window.opens(date(2026, 3, 29), berlin) == [at("2026-03-29T01:00")]
    assert window.opens(date(2026, 10, 25), berlin) == [at("2026-10-25T00:30"), at("2026-10-25T01:30")]
    assert window.opens(date(2026, 10, 26), berlin)[0] == at("2026-10-26T01:30")


def test_windows_are_told_by_the_clock_of_the_zone():
    schedule = Schedule.parse({**BASE, "zone": "Asia/Tokyo", "windows": [Window.parse("22:00-06:00")]})
    assert schedule.in_window(datetime(2026, 11, 20, 13, tzinfo=UTC))
    assert not schedule.in_window(datetime(2026, 11, 20, 22, tzinfo=UTC))
    assert schedule.opens(datetime(2026, 11, 20, 22, tzinfo=UTC)) == datetime(2026, 11, 21, 13, tzinfo=UTC)
    assert schedule.opens(datetime(2026, 11, 20, 22, tzinfo=UTC)).utcoffset() == timedelta()


@pytest.mark.parametrize(
    ("windows", "zone", "said"),
    [
        (["at night"], "UTC", "window: 'at night' is none"),
        (["22:00-06:00"], "Mars/Olympus", "no such time zone"),
    ],
)
def test_hours_that_are_none_are_refused_in_one_sentence(windows, zone, said):
    with pytest.raises(InvalidSchedule, match=said):
        Hours.parse(windows, zone)


def test_hours_come_back_from_json_as_they_were():
    hours = Hours.parse(["22:00-06:00", "sat,sun 00:00-24:00"], "Europe/Berlin")
    assert Hours.model_validate_json(hours.model_dump_json()) == hours
    assert str(hours) == "22:00-06:00 or sat,sun 00:00-00:00 (Europe/Berlin)"
