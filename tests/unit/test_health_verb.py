"""`gaelp health`: who makes progress, by what each program leaves behind."""

import pytest

from gaelp_tasks.cli import health
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot


def said(worker):
    return NodeSnapshot(
        worker=worker,
        url="http://ollama:11434",
        pid=1,
        healthy=True,
        started_at=0.0,
        seen_at=0.0,
        slots=1,
        memory=MemorySnapshot(total_bytes=2, free_bytes=1, source="host"),
    )


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
    verdict = health.of_worker(map(said, workers), "here", name)
    assert verdict.well is well
    assert verdict.why.endswith(".")


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
        (None, False),
    ],
)
def test_an_exporter_is_well_while_its_figures_are_fresh(page, well):
    verdict = health.of_page(page)
    assert verdict.well is well
    assert verdict.why.endswith(".")
