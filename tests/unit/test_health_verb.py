"""`gaelp health`: who makes progress, by what each program leaves behind."""

import json
import re
from pathlib import Path

import pytest
import requests
from ruamel.yaml import YAML

from gaelp_tasks.cli import health
from gaelp_tasks.metrics.page import Collected, new_page, text
from gaelp_tasks.metrics.series import WORKER
from gaelp_tasks.metrics.worker import Standing, samples
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot

ALERTS = Path(__file__).parents[2] / "docker/prometheus/alerts.yaml"


def said(worker, **other):
    return NodeSnapshot(
        worker=worker,
        url="http://ollama:11434",
        pid=1,
        healthy=True,
        started_at=0.0,
        seen_at=0.0,
        slots=1,
        memory=MemorySnapshot(total_bytes=2, free_bytes=1, source="host"),
    ).model_copy(update=other)


def told(worker="gaelp@here", **figures):
    """The page of a worker that hears and moves, but for these."""
    standing = Standing(
        worker=worker,
        version="1",
        runs=3,
        open=True,
        wants=True,
        claim_age_s=0.1,
        progress_age_s=0.2,
        reserve_bytes={"http://ollama:11434": 1},
    )._replace(**figures)
    page = new_page()
    Collected((one for one in WORKER if one.kind == "gauge"), lambda: samples(standing), page)
    return text(page)


@pytest.mark.parametrize(
    ("workers", "name", "well"),
    [
        (["gaelp@here"], "", True),
        (["gaelp-7@here", "gaelp@elsewhere"], "", True),
        (["gaelp@elsewhere"], "", False),
        (["gaelp@not-here"], "", False),
        ([], "", False),
        (["gaelp@here"], "other@here", False),
        (["other@here", "gaelp@here"], "other@here", True),
    ],
)
def test_a_worker_is_well_when_it_announces_itself(workers, name, well):
    verdict = health.of_worker(map(said, workers), "here", name, None)
    assert verdict.well is well
    assert verdict.why.endswith(".")


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (told(), ""),
        (told(claim_age_s=31.0), "has heard no answer for 31 s"),
        (told(claim_age_s=29.0), ""),
        (told(claim_age_s=31.0, wants=False), ""),
        (told(progress_age_s=601.0), "Nothing has moved"),
        (told(progress_age_s=599.0), ""),
        (told(progress_age_s=601.0, runs=0), ""),
        (told("gaelp@there", claim_age_s=31.0), ""),
        ("", "its page does not answer"),
        (None, ""),
    ],
)
def test_a_worker_is_well_while_it_hears_and_moves_by_its_own_page(page, why):
    verdict = health.of_worker([said("gaelp@here")], "here", "", page)
    assert verdict.well is (why == "")
    assert why in verdict.why


def test_a_worker_is_unwell_when_no_node_of_it_is_well():
    bad, good = said("gaelp@here", healthy=False, trouble="It hangs."), said("gaelp@here")
    verdict = health.of_worker([bad], "here", "", told())
    assert (verdict.well, "It hangs." in verdict.why) == (False, True)
    assert health.of_worker([bad, good], "here", "", told()).well


@pytest.mark.parametrize(("answered", "well"), [(1, True), (0, False)])
def test_who_stands_by_is_well_while_redis_answers_it(answered, well):
    verdict = health.of_worker([], "here", "", f"# HELP x\n{health.STANDBY} {answered}\n")
    assert verdict.well is well
    assert "stands by" in verdict.why


def test_the_bounds_are_those_of_the_alerts():
    [group] = YAML(typ="safe").load(ALERTS)["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    for alert, bound_s in (("GaelpDeafWorker", health.DEAF_S), ("GaelpNoProgress", health.STUCK_S)):
        assert float(re.search(r"_age_seconds > (\d+)", rules[alert])[1]) == bound_s


@pytest.mark.parametrize(
    ("ages", "well"),
    [
        ([("here:1:a", 0.4)], True),
        ([("here:1:a", 50.0), ("here:2:b", 0.4)], True),
        ([("here:1:a", 10.1)], False),
        ([("elsewhere:1:a", 0.4)], False),
        ([("here2:1:a", 0.4)], False),
        ([], False),
    ],
)
def test_a_beat_is_well_while_it_ticks(ages, well):
    assert health.of_beat(ages, "here").well is well


@pytest.mark.parametrize(
    ("page", "well"),
    [
        ("gaelp_redis_up 1.0\ngaelp_look_age_seconds 0.5\n", True),
        ("gaelp_redis_up 0.0\ngaelp_look_age_seconds 31.5\n", False),
        ("gaelp_redis_up 0.0\n", False),
        ("", False),
    ],
)
def test_an_exporter_is_well_while_its_figures_are_fresh(page, well):
    verdict = health.of_page(page)
    assert verdict.well is well
    assert verdict.why.endswith(".")


# --- the API ---


def told_by_api(status, told):
    made = requests.Response()
    made.status_code, made._content = status, json.dumps(told).encode()
    made.headers["content-type"] = "application/json"
    return made


@pytest.mark.parametrize(
    ("answer", "well", "why"),
    [
        (None, False, "`gaelp api` does not answer."),
        (
            told_by_api(200, {"status": "ok", "database": "ok", "redis": "ok"}),
            True,
            "`gaelp api` answers, and SQL and Redis answer it.",
        ),
        (
            told_by_api(503, {"status": "failed", "database": "ok", "redis": "does not answer"}),
            False,
            "`gaelp api` answers, but redis: no answer.",
        ),
        (told_by_api(500, {"detail": "x"}), False, "`gaelp api` answers, but with status 500."),
    ],
)
def test_an_api_is_well_while_it_and_what_it_needs_answer(answer, well, why):
    assert health.of_api(answer) == (well, why)
