"""What the doctor tells of beats, databases and nodes."""

import sqlite3
from contextlib import closing
from time import time

import pytest

from gaelp_tasks.cli import cluster
from support.doctor import GOOD, node, said, wrong

pytestmark = [pytest.mark.redis]


# --- beat and SQL -----------------------------------------------------------------------


def test_no_beat_leads(found, admin, leads):
    assert found(*GOOD)["beat"].verdict == "warn", "none ever did"
    admin.set("gaelp:beat:fence", 5)
    assert said(found(*GOOD)["beat"])[0] == "fail"
    leads(0)
    alone = found(*GOOD)["beat"]
    assert said(alone) == ("ok", "host:77 leads, none stands by"), "one machine"
    row = found(node("one"), node("two", worker="two@b"))["beat"]
    assert said(row) == ("warn", "host:77 leads, and none stands by")


def test_several_machines_need_one_postgres(found):
    assert "shared database" not in found(*GOOD)
    row = found(node("one"), node("two", worker="two@b"))["shared database"]
    assert row.verdict == "warn"
    assert "workers of 2 are announced" in row.finding
    assert "PostgreSQL" in row.advice


def test_history_that_goes_to_another_database(found, admin, sql):
    assert "history" not in found(*GOOD), "nobody has recorded anything"
    admin.set("gaelp:history:home", "somebody else's")
    assert found(*GOOD)["history"].verdict == "warn"
    [(own,)] = _sqlite(sql, "SELECT id FROM identity")
    admin.set("gaelp:history:home", own)
    assert found(*GOOD)["history"].verdict == "ok"


def _sqlite(url, question):
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return connection.execute(question).fetchall()


# --- nodes ------------------------------------------------------------------------------


def test_a_node_that_is_unwell_closed_or_silent(found):
    unwell = node("one", healthy=False, trouble="It hangs.")
    rows = found(unwell, GOOD[1], silent=[unwell])
    assert rows["worker one@a on http://one"].verdict == "fail", "worse than silent"
    assert rows["worker one@a on http://one"].advice == "It hangs."
    row = found(node("one", closed="cordoned"), GOOD[1])["worker one@a on http://one"]
    assert row.verdict == "warn"
    assert row.finding.startswith("cordoned: takes nothing new")
    assert "gaelp nodes resume one@a" in row.advice
    stopping = found(node("one", closed="stopping"), GOOD[1])["worker one@a on http://one"]
    assert (stopping.verdict, stopping.advice) == ("warn", "It ends by itself.")
    rows = found(*GOOD, silent=[GOOD[0]])
    assert wrong(rows) == {"beat", "worker one@a on http://one"}
    assert "not while we listened" in rows["worker one@a on http://one"].finding


@pytest.mark.parametrize(("ahead_s", "words"), [(30.0, "30 s ahead"), (-30.0, "30 s behind"), (1.0, "")])
def test_clocks_of_workers(found, ahead_s, words):
    row = found(*GOOD, ahead_s=ahead_s)["clocks"]
    assert row.verdict == ("warn" if words else "ok")
    if words:
        assert row.finding == f"against that of Redis one@a is {words}, two@a is {words}"


def test_the_clock_of_this_machine(found, monkeypatch):
    monkeypatch.setattr(cluster, "time", lambda: time() + 100.0)
    assert "this machine is 100 s ahead" in found(*GOOD)["clocks"].finding


def test_two_workers_with_one_address(found):
    row = found(node("one"), node("two", worker="two@b", url="http://one"))["node addresses"]
    assert said(row) == ("warn", "announced by several workers: http://one by one@a, two@b")


def test_a_worker_of_another_release(found):
    row = found(node("one", release="0.0.9"), node("two", release=""), node("three"))["releases"]
    assert row.verdict == "warn"
    assert "one@a runs 0.0.9, two@a runs an earlier release" in row.finding


@pytest.mark.parametrize(("setting", "value"), [("num_ctx", 8192), ("num_parallel", 4)])
def test_nodes_that_treat_a_model_differently(found, setting, value):
    name = f"GAELP_{setting.upper()}"
    row = found(node("one"), node("two", models=("phi",), **{setting: value}))[name]
    assert row.verdict == "warn"
    assert "phi:latest" in row.finding
    assert f"{value} at two@a" in row.finding
    alone = found(node("one"), node("two", models=("other:latest",), **{setting: value}))[name]
    assert alone.verdict == "ok", "they have no model in common"
    untold = {"num_ctx": None, "num_parallel": 0}
    assert found(node("one"), node("two", **{setting: untold[setting]}))[name].verdict == "ok"
