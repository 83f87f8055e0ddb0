"""Alert rules and dashboards ask only for what is told; each rule is tested, and says what to do."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gaelp_tasks.metrics.series import CLUSTER, CONTROL_PLANE, HTTP, WORKER
from support.needs import needs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker/prometheus"
GRAFANA = ROOT / "docker/grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))


def read(path):
    return YAML(typ="safe").load(path)


EVERY = (*CLUSTER, *WORKER, *HTTP, *CONTROL_PLANE)
RULES = {rule["alert"]: rule for group in read(FOLDER / "alerts.yaml")["groups"] for rule in group["rules"]}
SCRAPES = {job["job_name"]: job for job in read(FOLDER / "prometheus.yaml")["scrape_configs"]}
LABELS = {
    name: set(series.labels) | ({"le"} if series.kind == "histogram" else set())
    for series in EVERY
    for name in (
        [f"{series.name}_{part}" for part in ("bucket", "sum", "count")]
        if series.kind == "histogram"
        else [series.name]
    )
}
#: what Prometheus adds by itself
ADDED = {"job", "instance"}


def asked(expr):
    """The metrics that an expression names, each with the labels that it is chosen by there."""
    for name, chosen in re.findall(
        r"\b(?!agent_id\b)((?:gaelp|agent|cluster)_\w+|up)\b(?:\{([^}]*)\})?", expr
    ):
        yield name, set(re.findall(r"(\w+)\s*[=!]", chosen))


def wrong(expr):
    """Names and labels that nobody tells."""
    for name, labels in asked(expr):
        if name == "up":
            continue
        if name not in LABELS:
            yield name
        else:
            yield from (f"{name}{{{label}}}" for label in labels - LABELS[name] - ADDED)


def grouped(expr):
    """The labels by which an expression groups."""
    return {label for labels in re.findall(r"\bby \(([^)]*)\)", expr) for label in re.split(r",\s*", labels)}


def queries():
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")


@pytest.mark.parametrize("name", RULES)
def test_an_alert_asks_for_what_is_told_and_says_what_to_do(name):
    rule = RULES[name]
    assert not list(wrong(rule["expr"]))
    assert list(asked(rule["expr"])), "it asks for something"
    assert set(rule["annotations"]) == {"summary", "action"}
    assert all(text.endswith((".", ")")) for text in rule["annotations"].values())
    assert rule["labels"]["severity"] in {"critical", "warning"}


@pytest.mark.parametrize("name", RULES)
def test_an_alert_has_a_scene_in_which_it_fires(name):
    scenes = read(FOLDER / "alerts_test.yaml")["tests"]
    fires = [
        sample
        for scene in scenes
        for question in scene.get("promql_expr_test", ())
        for sample in question.get("exp_samples", ())
        if f'alertname="{name}"' in sample["labels"]
    ]
    assert fires


def test_the_jobs_that_alerts_name_are_scraped():
    named = {job for rule in RULES.values() for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert named <= SCRAPES.keys()


def test_what_keeps_quiet_for_another_alert_is_an_alert():
    rules = read(FOLDER / "alertmanager.yaml")["inhibit_rules"]
    patterns = [
        re.fullmatch(r'alertname =~? "(.*)"', matcher)[1]
        for rule in rules
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
    ]
    alternatives = [re.fullmatch(r"(\w+)\(([\w|]+)\)", pattern) for pattern in patterns]
    names = {
        name
        for pattern, many in zip(patterns, alternatives, strict=True)
        for name in ([many[1] + end for end in many[2].split("|")] if many else [pattern])
    }
    assert names <= RULES.keys()
    assert len(names) > 1


def test_the_page_of_documentation_lists_every_alert():
    rows = re.findall(r"(?m)^\| `(Gaelp\w+)` \| .* \| (\w+) \|$", (ROOT / "docs/metrics.md").read_text())
    assert dict(rows) == {name: rule["labels"]["severity"] for name, rule in RULES.items()}


@pytest.mark.parametrize("expr", list(queries()))
def test_a_query_of_a_dashboard_asks_for_what_is_told(expr):
    assert list(asked(expr)), "it asks for something"
    assert not list(wrong(expr))
    known = set().union(*(LABELS[name] for name, _ in asked(expr)))
    assert grouped(expr) <= known | ADDED


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_says_what_each_panel_shows_and_where_its_figures_come_from(path):
    board = json.loads(path.read_text())
    sources = {
        one["uid"] for one in read(GRAFANA / "provisioning/datasources/prometheus.yaml")["datasources"]
    }
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} <= sources
            assert all(target["expr"] for target in panel["targets"])


def test_every_figure_of_the_contract_is_on_a_dashboard():
    there = {name for parameters in queries() for name, _ in asked(parameters.values[0])}
    beside = {"gaelp_node_open", "gaelp_worker_open", "gaelp_claims_wanted", "gaelp_worker_info"}
    beside |= {"gaelp_look_age_seconds", "gaelp_api_info", "gaelp_sql_up"}
    wanted = {series.name for series in EVERY} - beside
    assert wanted <= {re.sub("_bucket$", "", name) for name in there}


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("sum(gaelp_nothing)", ["gaelp_nothing"]),
        ('gaelp_queue_depth{tenant="a"}', ["gaelp_queue_depth{tenant}"]),
        ("rate(gaelp_run_seconds[5m])", ["gaelp_run_seconds"]),
        ('up{job="x"} and gaelp_queue_depth{tier=~"a", job="x"} > 0', []),
    ],
)
def test_what_nobody_tells_is_seen(expr, found):
    assert list(wrong(expr)) == found


@needs("promtool", "prometheus")
@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "prometheus.yaml"),
        ("check", "rules", "alerts.yaml"),
        ("test", "rules", "alerts_test.yaml"),
    ],
    ids=" ".join,
)
def test_prometheus_own_tool_finds_nothing_wrong(words):
    done = subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("amtool", "prometheus-alertmanager")
def test_alertmanagers_own_tool_finds_nothing_wrong():
    words = ("amtool", "check-config", "alertmanager.yaml")
    done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
