"""`gaelp schedule` on a database of its own; nothing here needs a Redis."""

import inspect
import json
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app
from gaelp_tasks.cli.app import cli
from gaelp_tasks.cli.schedule_options import _options
from gaelp_tasks.settings import Settings

NIGHTLY = ("nightly", "--cron", "0 2 * * *", "--zone", "Europe/Berlin", "--prompt", "Sum up the day.")


@pytest.fixture
def gaelp(tmp_path, monkeypatch):
    """Runs `gaelp schedule ...`; gives what it printed, after it ended as it should."""
    settings = Settings(broker_url="redis://127.0.0.1:1/0", database_url=f"sqlite:///{tmp_path}/gaelp.db")
    monkeypatch.setitem(app.__dict__, "settings", settings)
    monkeypatch.delitem(app.__dict__, "redis", raising=False)

    def run(*words, code=0, stdin=None):
        done = CliRunner().invoke(cli, ["schedule", *words], input=stdin)
        assert done.exit_code == code, (done.output, done.exception)
        return " ".join((done.stdout + done.stderr).replace("│", " ").split())

    yield run
    app.__dict__.pop("redis", None)


def facts(gaelp, name):
    return json.loads(gaelp("show", name, "--json"))


def test_what_is_added_is_listed_with_its_next_time_in_its_zone(gaelp):
    told = gaelp("add", *NIGHTLY, "--tier", "batch", "--model", "llama3.2:3b")
    assert told.startswith("nightly: added, next: 20")
    assert "02:00:00 CE" in told
    listed = gaelp("list")
    assert "0 2 * * * (Europe/Berlin)" in listed
    assert "Sum up the day." in listed
    [one] = json.loads(gaelp("list", "--json"))
    assert one["kwargs"] == {"prompt": "Sum up the day.", "model": "llama3.2:3b"}
    assert len(one["next"]) == 1
    shown = facts(gaelp, "nightly")
    assert len(shown["next"]) == 5
    assert shown["next"] == sorted(shown["next"])
    assert "next" in gaelp("show", "nightly", "--next", "2")


def test_an_edit_changes_what_is_given_and_leaves_the_rest(gaelp):
    gaelp("add", *NIGHTLY, "--window", "mon-fri 22:00-06:00", "--expires", "1h", "--overlap", "queue")
    gaelp("edit", "nightly", "--cron", "30 3 * * *", "--agent", "research")
    changed = facts(gaelp, "nightly")
    assert changed["cron"] == "30 3 * * *"
    assert changed["kwargs"] == {"prompt": "Sum up the day.", "agent": "research"}
    assert (changed["expires_s"], changed["overlap"], len(changed["windows"])) == (3600, "queue", 1)
    gaelp("edit", "nightly", "--window", "", "--expires", "", "--every", "30m", "--rename", "half-hourly")
    changed = facts(gaelp, "half-hourly")
    assert (changed["windows"], changed["expires_s"], changed["cron"]) == ([], None, None)
    start = datetime.fromisoformat(changed["start"])
    assert timedelta() <= datetime.now(UTC) - start < timedelta(minutes=5)
    assert datetime.fromisoformat(changed["next"][0]) == start + timedelta(minutes=30)
    gaelp("edit", "half-hourly", "--task", "shop.reindex", "--args", '["all"]', "--queue", "celery")
    changed = facts(gaelp, "half-hourly")
    assert (changed["task"], changed["args"], changed["kwargs"]) == ("shop.reindex", ["all"], {})
    assert "no schedule 'nightly'" in gaelp("show", "nightly", code=1)


def test_one_is_paused_resumed_and_removed(gaelp):
    gaelp("add", *NIGHTLY, "--paused")
    assert facts(gaelp, "nightly")["next"] == []
    assert "next: 20" in gaelp("resume", "nightly")
    assert "paused" in gaelp("pause", "nightly")
    assert "paused" in gaelp("list")
    assert gaelp("remove", "nightly", "--yes") == "nightly: removed"
    assert "There are no schedules" in gaelp("list")


def test_the_prompt_may_come_from_standard_input(gaelp):
    gaelp("add", "a", "--every", "90", "--prompt", "-", stdin="A long prompt.")
    assert facts(gaelp, "a")["kwargs"] == {"prompt": "A long prompt."}


def test_a_time_without_a_zone_of_its_own_is_in_that_of_the_schedule(gaelp):
    day = f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%d}"
    gaelp("add", "a", "--at", f"{day} 12:00", "--zone", "Asia/Tokyo", "--prompt", "hi")
    assert facts(gaelp, "a")["next"] == [f"{day}T03:00:00+00:00"]
    gaelp("edit", "a", "--at", f"{day}T12:00+02:00")
    assert facts(gaelp, "a")["next"] == [f"{day}T10:00:00+00:00"]


def test_tenants_have_schedules_of_their_own(gaelp):
    gaelp("add", *NIGHTLY, "--tenant", "acme")
    assert "There are no schedules" in gaelp("list")
    assert "nightly" in gaelp("list", "--tenant", "acme")
    gaelp("add", *NIGHTLY)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompt", "x"), "one of --cron, --every and --at"),
        (("--prompt", "x", "--at", "2090-01-01", "--every", "1h"), "one of --cron, --every and --at"),
        (("--cron", "0 2 * *", "--prompt", "x"), "write five fields"),
        (("--every", "5x", "--prompt", "x"), "no length of time"),
        (("--every", "0", "--prompt", "x"), "interval_s"),
        (("--at", "tomorrow", "--prompt", "x"), "is no time"),
        (("--at", "2020-01-01", "--prompt", "x"), "Nothing is ever due"),
        (("--at", "2090-01-01", "--zone", "Mars", "--prompt", "x"), "is no time"),
        (("--cron", "0 12 * * *", "--window", "22:00-06:00", "--prompt", "x"), "Nothing is ever due"),
        (("--cron", "@daily", "--window", "nights", "--prompt", "x"), "write one as"),
        (("--cron", "@daily", "--task", "shop.x", "--args", "{}"), "give a list of JSON"),
        (("--cron", "@daily", "--task", "shop.x", "--kwargs", "["), "give an object of JSON"),
        (
            ("--cron", "@daily", "--prompt", "x", "--tier", "interactive", "--only-when-idle"),
            "no tier is higher",
        ),
        (("--cron", "@daily"), "the prompt is empty"),
        (("--at", "9999-12-31 23:59", "--prompt", "x"), "take a year from 1970 to 9000"),
        (("--at", "0001-01-01T00:00+14:00", "--prompt", "x"), "take a year from 1970 to 9000"),
        (("--every", "1h", "--start", "0001-01-01", "--zone", "Asia/Tokyo", "--prompt", "x"), "take a year"),
        (("--every", "1h", "--end", "9999-12-31", "--zone", "America/Lima", "--prompt", "x"), "take a year"),
        (("--every", "9" * 400, "--prompt", "x"), "interval_s"),
        (("--every", "1h", "--expires", "9" * 400, "--prompt", "x"), "expires_s"),
        (("--cron", "@daily", "--window", "22:00+02:00-06:00+02:00", "--prompt", "x"), "write one as"),
        (("--cron", "@daily", "--window", "22:00Z-06:00", "--prompt", "x"), "write one as"),
        (("--cron", "@daily", "--prompt", "x", "--tenant", "t" * 201), "200 characters"),
        (("--cron", "@daily", "--prompt", "x", "--tenant", "\udcff"), "not UTF-8"),
    ],
)
def test_what_cannot_be_is_a_usage_error_in_one_sentence(gaelp, words, said):
    assert said.lower() in gaelp("add", "a", *words, code=2).lower()


def test_a_name_that_is_taken_is_refused(gaelp):
    gaelp("add", *NIGHTLY)
    assert "There is a schedule 'nightly' already" in gaelp("add", *NIGHTLY, code=2)
    gaelp("add", "other", *NIGHTLY[1:])
    assert "There is a schedule 'nightly' already" in gaelp("edit", "other", "--rename", "nightly", code=2)


def test_times_far_away_are_shown_and_have_an_end(gaelp):
    gaelp("add", "a", "--every", "365d", "--start", "8990-01-01", "--prompt", "x")
    assert len(json.loads(gaelp("show", "a", "--next", "1000", "--json"))["next"]) == 12
    words = ("--start", "8990-01-01", "--window", "00:00-12:00", "--prompt", "x")
    gaelp("add", "b", "--cron", "@yearly", *words)
    assert len(json.loads(gaelp("show", "b", "--next", "1000", "--json"))["next"]) == 11


def test_both_verbs_that_take_the_options_show_and_pass_all_of_them(gaelp):
    help_of = {verb: gaelp(verb, "--help") for verb in ("add", "edit")}
    for option in inspect.signature(_options).parameters:
        name = f"--{option.replace('_', '-')}"
        assert all(name in text for text in help_of.values()), name
    assert "--paused" in help_of["add"]
    assert "--rename" in help_of["edit"]


def test_a_name_that_no_terminal_can_type_is_a_usage_error(gaelp):
    assert "not UTF-8" in gaelp("show", "\udcff", code=2)


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "run", "edit"])
def test_an_unknown_name_is_told(gaelp, verb):
    assert "there is no schedule 'x'" in gaelp(verb, "x", code=1)


def test_a_schedule_of_another_release_is_named_and_can_be_removed(gaelp, tmp_path):
    gaelp("add", *NIGHTLY)
    with sqlite3.connect(tmp_path / "gaelp.db") as db:
        db.execute("""UPDATE schedules SET spec = json_set(spec, '$.of_the_future', 1)""")
    db.close()
    assert "Schedule 'nightly' is of another release" in gaelp("list", code=2)
    gaelp("remove", "nightly", "--yes")
    assert "There are no schedules" in gaelp("list")


def test_a_prompt_cannot_move_the_cursor(gaelp):
    gaelp("add", "a", "--every", "1h", "--prompt", "\x1b[2Jhi")
    assert "\x1b[2J" not in gaelp("list") + gaelp("show", "a")
