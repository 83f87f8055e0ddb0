"""What `gaelp nodes list`, `status` and `show` print."""

import json

import pytest
from typer.testing import CliRunner

from gaelp_tasks.cli import looking, nodes
from gaelp_tasks.cli.app import cli
from gaelp_tasks.lifecycle import State
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.overview import Description

MEMORY = MemorySnapshot(total_bytes=8 * 1024**3, free_bytes=3 * 1024**3, source="test")


def node(url, **facts):
    return NodeSnapshot(
        **{
            "worker": "w@h", "pid": 1, "url": url, "healthy": True, "slots": 2, "started_at": 1.0,
            "seen_at": 2.0, "memory": MEMORY, "running": ("r",), "tokens_per_s": 4.5,
        }
        | facts
    )  # fmt: skip


@pytest.fixture
def announced(monkeypatch):
    """What the workers announce."""
    told = []
    for module in (nodes, looking):
        monkeypatch.setattr(module, "live_nodes", lambda _: told)
    monkeypatch.setattr(nodes.cordons, "asked", lambda _: frozenset())
    monkeypatch.setattr(looking, "queue_depths", lambda _: {"interactive": 3, "batch": 0, "background": 0})
    return told


def gaelp(*words):
    return CliRunner().invoke(cli, words)


@pytest.mark.parametrize("verb", [("nodes", "list"), ("status",)])
def test_every_node_is_a_row_and_what_is_wrong_a_sentence(announced, verb):
    announced += [node("http://a:1"), node("http://b:1", healthy=False, trouble="http://b:1 hangs.")]
    done = gaelp(*verb)
    assert done.exit_code == 0
    row = next(line for line in done.stdout.splitlines() if "http://a:1" in line)
    assert row.split()[:9] == ["http://a:1", "ok", "■□", "1/2", "4.5", "3.0", "of", "8.0", "GiB"]
    assert next(line.split()[:2] for line in done.stdout.splitlines() if "http://b:1 " in line) == [
        "http://b:1",
        "hangs",
    ]
    assert "http://b:1 hangs.\n" in done.stdout
    assert ("interactive" in done.stdout) is (verb == ("status",))


@pytest.mark.parametrize("verb", [("nodes", "list"), ("status",)])
def test_json_has_every_field(announced, verb):
    announced.append(node("http://a:1"))
    [told] = json.loads(gaelp(*verb, "--json").stdout)["nodes"]
    assert NodeSnapshot.model_validate_json(json.dumps(told)) == announced[0]


@pytest.mark.parametrize("verb", [("nodes", "list"), ("status",)])
def test_without_a_worker_it_says_how_to_start_one_and_exits_with_one(announced, verb):
    done = gaelp(*verb)
    assert done.exit_code == 1
    assert "gaelp worker" in done.stdout


@pytest.mark.parametrize("at", ["http://a:1", ""])
def test_show_tells_the_node_as_soon_as_it_is_known(monkeypatch, at):
    told = Description(
        id="i", state=State.RUNNING, why="", place=None, start={"worker": "w", "node": "", "agent": "chat"},
        node=at, end={}, result=None, error="",
    )  # fmt: skip
    monkeypatch.setattr(looking, "describe", lambda *_: told)
    rows = [line.split() for line in gaelp("show", "i").stdout.splitlines()]
    assert ["agent", "chat"] in rows
    assert (["node", at] in rows) is bool(at)
    assert any(row[0] == "node" for row in rows) is bool(at)


@pytest.mark.parametrize(
    "verb",
    [
        *("top", "status", "show", "doctor", "config", "nodes list"),
        *("models list", "models pull", "models warm", "models unload"),
    ],
)
def test_every_verb_teaches_by_an_example(verb):
    said = gaelp(*verb.split(), "--help").stdout
    assert "Example:" in said
    assert f"gaelp {verb}" in said.partition("Example:")[2]
