"""docs/from-the-design.md tells the truth: what it calls present exists, what it calls planned does not."""

import inspect
import re
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from gaelp_tasks import app
from gaelp_tasks.cli.app import cli
from gaelp_tasks.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/from-the-design.md"
PARTS = ("memory", "claim", "distributed", "toolkit", "control plane", "cluster")


class Row(NamedTuple):
    seed: str
    name: str
    here: str
    state: str
    why: str

    @property
    def targets(self):
        return re.findall(r"`([^`]+)`", self.here)


ROWS = [
    Row(*(cell.strip() for cell in line.strip().strip("|").split("|")))
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| [123] \|", line)
]
PRESENT = sorted({target for row in ROWS if row.state == "present" for target in row.targets})
PLANNED = sorted({target for row in ROWS if row.state == "planned" for target in row.targets})


def has(thing, name):
    """An attribute, a field, or what its constructor takes."""
    fields = getattr(thing, "model_fields", None) or getattr(thing, "__annotations__", {})
    if hasattr(thing, name) or name in fields:
        return True
    return isinstance(thing, type) and name in inspect.signature(thing).parameters


def importable(path):
    module, _, attributes = path.partition(":")
    try:
        thing = import_module(module)
    except ModuleNotFoundError as error:
        if not path.startswith(str(error.name)):  # something that the module itself needs
            raise
        return False
    for name in filter(None, attributes.split(".")):
        if not has(thing, name):
            return False
        thing = getattr(thing, name, None)
    return True


def is_verb(words):
    command = typer.main.get_command(cli)
    for word in words:
        command = getattr(command, "commands", {}).get(word)
    return command is not None


def exists(target):
    """Whether a target of the page is there."""
    if target.startswith("GAELP_"):
        return target.removeprefix("GAELP_").lower() in Settings.model_fields
    if target.startswith("gaelp."):
        return target in app.tasks
    if target.startswith("gaelp "):
        return is_verb(target.split()[1:])
    if target.startswith("make "):
        return re.search(rf"(?m)^{target.split()[1]}:", (ROOT / "Makefile").read_text()) is not None
    if "/" in target or ("." in target and not target.startswith("gaelp_")):
        return (ROOT / target).exists()
    return importable(target)


@pytest.fixture(scope="module", autouse=True)
def tasks():
    app.loader.import_default_modules()


def test_all_three_documents_are_mapped():
    assert set(Counter(row.seed for row in ROWS)) == {"1", "2", "3"}
    assert all(count > 30 for count in Counter(row.seed for row in ROWS).values())


def test_a_name_stands_in_the_page_once():
    assert [name for name, count in Counter((row.seed, row.name) for row in ROWS).items() if count > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.seed}: {row.name}")
def test_a_row_says_where_and_why(row):
    assert row.state in {"present", "planned", "left out"}
    assert row.targets or row.state == "left out"
    assert row.why or row.state == "present"
    if row.state == "planned":
        assert row.why.startswith(PARTS), f"which of {PARTS} brings it?"


@pytest.mark.parametrize("target", PRESENT)
def test_what_is_present_exists(target):
    assert exists(target), f"{PAGE.name} calls {target} present, and it is not there."


@pytest.mark.parametrize("target", PLANNED)
def test_what_is_planned_does_not_exist_yet(target):
    assert not exists(target), f"{target} has come: call it present in {PAGE.name}."


@pytest.mark.parametrize(
    "target",
    [
        "gaelp_tasks.nothing",
        "gaelp_tasks.clients:Nothing",
        "gaelp_tasks.clients:BaseOllamaClient.nothing",
        "gaelp_tasks.models.invocation:Invocation.nothing",
        "GAELP_NOTHING",
        "gaelp nothing",
        "gaelp demo nothing",
        "make nothing",
        "gaelp.nothing",
        "docs/nothing.md",
        "nothing.yaml",
    ],
)
def test_each_kind_of_target_can_be_missing(target):
    assert not exists(target)
