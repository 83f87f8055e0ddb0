"""`gaelp history`: what it lists, shows, and does not understand."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from gaelp_tasks.db.history import History
from support.told import gaelp, listed, row, set_to


def test_the_command_lists_what_is_meant(file, loop):
    now = datetime.now(UTC)
    changes = {"a": {}, "b": {"tier": "interactive"}, "c": {"state": "failed", "error": "NodeFailed: no"}}
    rows = [row(name, **one) for name, one in changes.items()]
    for hours, one in enumerate(rows):
        one["finished_at"] = now - timedelta(hours=hours)
    loop.run(History(file, None).add([*rows, row("t", tenant="me")]))
    assert listed() == ["a", "b", "c", "t"]
    assert listed("--since", "90m") == ["a", "b"]
    assert listed("--since", (now - timedelta(minutes=1)).isoformat()) == ["a"]
    assert listed("--tier", "interactive") == ["b"]
    assert listed("--state", "failed") == ["c"]
    assert listed("--tenant", "me") == ["t"]
    assert listed("--tenant", "") == ["a", "b", "c"]
    assert listed("--most", "1", "--skip", "1") == ["b"]
    table = gaelp("--most", "3").stdout
    assert "NodeFailed" in table
    assert "4 there are" in table
    assert gaelp("--model", "none").stdout == "Nothing in the history is like this.\n"


def test_the_command_shows_one_with_its_texts_only_where_asked(file, loop):
    loop.run(History(file, None).add([row("abc", prompt="SECRET", text="TEXT\x1b[2J"), row("abd")]))
    assert "SECRET" not in gaelp().stdout + gaelp("--json").stdout + gaelp("show", "abc").stdout
    told = gaelp("show", "abc", "--text").stdout
    assert "SECRET" in told
    assert "\x1b" not in told
    assert json.loads(gaelp("show", "abc", "--text", "--json").stdout)["prompt"] == "SECRET"
    for name, why in (("ab", "has several"), ("x", "does not have x")):
        refused = gaelp("show", name)
        assert (refused.exit_code, why in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    "words",
    [
        ("--since", "yesterday"), ("--state", "running"), ("--tier", "none"), ("--most", "0"),
        ("purge",), ("purge", "a", "--older-than", "1d"), ("purge", "--older-than", "soon"),
        ("--since", "0001-01-01"), ("purge", "--older-than", "9999-12-31T23:59-14:00"),
        ("--tenant", "\udcff"), ("--model", "\udcff"), ("show", "\udcff"),
    ],
)  # fmt: skip
def test_what_the_command_does_not_understand_is_a_usage_error(file, words):
    assert gaelp(*words).exit_code == 2


def test_without_a_database_there_is_no_history_and_none_is_made(redis, tmp_path, monkeypatch):
    set_to(monkeypatch, database_url=f"sqlite:///{tmp_path}/no/gaelp.db")
    assert "no history yet" in gaelp().stdout
    assert listed() == []
    assert gaelp("purge", "a").stdout == "0 thrown away\n"
    assert gaelp("show", "a").exit_code == 1
    assert list(tmp_path.iterdir()) == []
