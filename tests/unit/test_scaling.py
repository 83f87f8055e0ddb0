"""The queries to scale by, as docs/metrics.md has them: evaluated by promtool on figures that are known."""

import re
import subprocess
from math import ceil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gaelp_tasks.metrics.series import CLUSTER
from support.needs import needs

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
SECTION = PAGE.partition("\n## Scaling\n")[2].partition("\n## ")[0]
THERE, WAITED, PER_NODE = (
    re.sub(r"(?m)^#.*\n", "", block).strip() for block in re.findall(r"(?s)```promql\n(.*?)```", SECTION)
)
LABELS = {series.name: set(series.labels) for series in CLUSTER}
MODEL = "llama3.2:3b"


@pytest.mark.parametrize("query", [THERE, WAITED, PER_NODE])
def test_a_query_asks_for_what_is_told(query):
    asked = re.findall(r"(gaelp_\w+)\{([^}]*)\}", query)
    assert asked
    for name, chosen in asked:
        assert set(re.findall(r"(\w+)\s*[=!]", chosen)) <= LABELS[name]


def depth(name, tier, model, value, instance="a"):
    labels = f'tier="{tier}", model="{model}", instance="{instance}"'
    return {"series": f"gaelp_{name}{{{labels}}}", "values": f"{value}x9"}


def slots(node, model, state, value):
    labels = f'node="{node}", model="{model}", state="{state}", instance="a"'
    return {"series": f"gaelp_slots{{{labels}}}", "values": f"{value}x9"}


#: of each exporter alike: nine that wait and run, of which one is background work, and one another model's
BUSY = [
    figure
    for instance in "ab"
    for figure in (
        depth("queue_depth", "interactive", MODEL, 2, instance),
        depth("queue_depth", "batch", MODEL, 1, instance),
        depth("queue_depth", "batch", "any", 1, instance),
        depth("queue_depth", "background", MODEL, 50, instance),
        depth("queue_depth", "batch", "other:7b", 50, instance),
        depth("queue_depth", "interactive", "inbox", 0, instance),
        depth("running", "interactive", MODEL, 3, instance),
        depth("running", "batch", "any", 1, instance),
        depth("running", "background", MODEL, 1, instance),
        depth("queue_oldest_seconds", "interactive", MODEL, 12, instance),
        depth("queue_oldest_seconds", "batch", MODEL, 500, instance),
    )
]
#: two nodes with four slots each; a third one has yet to load the model
NODES = [
    *(slots(node, MODEL, state, value) for node in "xy" for state, value in (("busy", 3), ("free", 1))),
    slots("z", MODEL, "unloaded", 4),
    slots("z", "other:7b", "busy", 2),
]
#: no worker lives: models are called as their queues are, and plain senders' messages are not sorted
NOBODY = [
    depth("queue_depth", "batch", "llama3.2_3b", 3),
    depth("queue_depth", "batch", "inbox", 2),
    depth("queue_depth", "interactive", "any", 0),
    depth("running", "interactive", "any", 0),
]


@needs("promtool", "prometheus")
@pytest.mark.parametrize(
    ("figures", "query", "value"),
    [
        (BUSY, THERE, 8),
        (BUSY, WAITED, 12),
        (NODES, PER_NODE, 4),
        (NOBODY, THERE, 5),
        ([], THERE, None),
    ],
    ids=["busy", "waited", "slots of a node", "nobody", "Redis away"],
)
def test_a_query_gives_what_it_says(tmp_path, figures, query, value):
    question = {"expr": query, "eval_time": "1m"}
    if value is not None:
        question["exp_samples"] = [{"labels": "{}", "value": value}]
    scene = {"interval": "15s", "input_series": figures, "promql_expr_test": [question]}
    with (tmp_path / "scene.yaml").open("w") as file:
        YAML().dump({"evaluation_interval": "15s", "tests": [scene]}, file)
    done = subprocess.run(
        ["promtool", "test", "rules", "scene.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_target_of_the_example_is_the_slots_of_its_nodes_and_its_settings_are_read():
    [block] = re.findall(r"(?s)```yaml\n(.*?)```", SECTION)
    spec = YAML(typ="safe").load(block)["spec"]
    by_number, by_wait = spec["triggers"]
    assert by_number["metricType"] == "AverageValue"
    assert ceil(8 / int(by_number["metadata"]["threshold"])) == 2, "eight invocations fill two nodes of four"
    assert by_wait["metricType"] == "Value"
    assert {one["metadata"]["ignoreNullValues"] for one in spec["triggers"]} == {"false"}, "away is not zero"
