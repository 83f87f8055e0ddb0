"""What `gaelp nodes list`, `status` and `show` print."""

import json

import pytest
from typer.testing import CliRunner

from gaelp_tasks.cli import looking, nodes
from gaelp_tasks.cli.app import cli
from gaelp_tasks.lifecycle import State
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.capacity import ModelSlots
from gaelp_tasks.overview import Description, Place
from gaelp_tasks.waiting import Expected

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
    for module in (nodes, looking):
        monkeypatch.setattr(module, "waiting_in", lambda _: {"interactive": 3, "batch": 0, "background": 0})
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


@pytest.mark.parametrize("verb", [("nodes", "list"), ("status",)])
def test_the_models_of_a_node_are_told_with_what_they_wait_for(announced, verb):
    short = ModelSlots(model="big:1b", slots=0, busy=1, phase="draining", why="Memory is short.")
    announced.append(node("http://a:1", by_model=(short,), loaded=("big:1b",), models=("big:1b",)))
    done = gaelp(*verb)
    assert next(line.split() for line in done.stdout.splitlines() if line.startswith("big:1b")) == [
        "big:1b", "1/0", "draining", "-", "-",
    ]  # fmt: skip
    assert "Memory is short." in done.stdout
    assert json.loads(gaelp(*verb, "--json").stdout)["nodes"][0]["by_model"][0]["why"] == "Memory is short."


@pytest.mark.parametrize(
    ("start_in_s", "said"),
    [(0.2, "now"), (12.4, "in about 12 s"), (300.0, "in about 5 min"), (1e5, "in about 28 h")],
)
def test_show_tells_when_it_starts_and_json_how_that_was_estimated(monkeypatch, start_in_s, said):
    def told(start_in_s, how):
        return Description(
            id="i", state=State.QUEUED, why="All taken.", place=Place("batch.m", 3), start={}, node="",
            end={}, result=None, error="", expected=Expected(start_in_s, 4, 2, 2, 6.0, how),
        )  # fmt: skip

    monkeypatch.setattr(looking, "describe", lambda *_: told(start_in_s, "5 runs first"))
    rows = gaelp("show", "i").stdout.splitlines()
    assert [row.strip().split(maxsplit=2) for row in rows if "expected" in row] == [
        ["expected", "start", said]
    ]
    assert json.loads(gaelp("show", "i", "--json").stdout)["expected"] == {
        "start_in_s": start_in_s, "ahead": 4, "slots": 2, "busy": 2, "run_s": 6.0, "how": "5 runs first",
    }  # fmt: skip
    monkeypatch.setattr(looking, "describe", lambda *_: told(None, "no slot now"))
    assert "unknown: no slot now" in gaelp("show", "i").stdout


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
