"""What Prometheus is told: names and labels that stay few, each in the contract and on its page."""

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.metrics.series import CLUSTER, CONTROL_PLANE, HTTP, OTHER, WORKER, Names
from support.metric_pages import LABELS

ROOT = Path(__file__).parents[3]
#: what the contract, section 8, asks for
CONTRACT = {
    "gaelp_queue_depth": ("tier", "model"),
    "gaelp_queue_wait_seconds": ("tier",),
    "gaelp_slots": ("node", "model", "state"),
    "gaelp_memory_bytes": ("node", "kind"),
    "gaelp_invocations_total": ("tier", "agent", "outcome"),
    "gaelp_first_token_seconds": ("tier",),
    "gaelp_tokens_total": ("model", "kind"),
    "gaelp_evictions_total": ("reason",),
    "gaelp_retries_total": (),
    "gaelp_dead_letters": (),
    "gaelp_reaped_total": (),
}
SEED = {"agent_jobs_total", "agent_job_duration_seconds", "agent_resource_usage", "cluster_resource_usage"}
EVERY = (*CLUSTER, *WORKER, *HTTP, *CONTROL_PLANE)


def test_every_metric_of_the_contract_is_told_with_its_labels():
    labels = {series.name: series.labels for series in EVERY}
    assert {name: labels[name] for name in CONTRACT} == CONTRACT
    assert labels.keys() >= SEED


def test_nothing_is_labelled_by_what_has_many_values():
    assert {label for series in EVERY for label in series.labels} == set(LABELS)


def test_a_counter_is_called_so():
    assert all((series.kind == "counter") == series.name.endswith("_total") for series in EVERY)


def test_the_page_of_documentation_lists_every_metric_with_kind_and_labels():
    rows = re.findall(r"(?m)^\| `([a-z_]+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs/metrics.md").read_text())
    listed = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert listed == {(series.name, series.kind, series.labels) for series in EVERY}


@given(st.lists(st.text()), st.integers(0, 5))
def test_names_stay_few_whatever_comes(names, most):
    bounded = Names(most)
    called = [bounded.of(name) for name in names]
    assert len(set(called) - {OTHER}) <= most
    assert called == [bounded.of(name) for name in names], "a name is always called the same"
    assert all(name in {given, OTHER} for given, name in zip(names, called, strict=True))
