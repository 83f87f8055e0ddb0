"""docs/money.md says what the tables of the code say."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gaelp_tasks.api.routes import budgets, quotas
from gaelp_tasks.cli.app import cli
from gaelp_tasks.models.money import UNITS, micro_of, units
from gaelp_tasks.models.tariff import Tariff
from gaelp_tasks.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs/money.md").read_text()


def rows_under(heading):
    part = re.split(r"\n#+ ", PAGE.partition(f"# {heading}\n")[2])[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_prices_are_as_the_page_says():
    told = {named(name)[0]: default for name, default, _ in rows_under("The tariff")}
    assert told == {name: str(value) for name, value in Tariff().model_dump().items()}
    [example] = re.findall(r"GAELP_TARIFF='(.*)'", PAGE)
    assert Tariff.model_validate_json(example).of("big").completion_micro_per_million == 8_000_000


def test_kinds_of_costs_are_as_the_page_says():
    told = {name: unit for names, unit, _ in rows_under("The ledger") for name in named(names)}
    assert told == {kind.value: unit for kind, unit in UNITS.items()}


def test_routes_are_as_the_page_says():
    told = {tuple(named(row[0])[0].partition("?")[0].split()) for row in rows_under("Over HTTP")}
    routes = [route for one in (quotas.router, budgets.router, budgets.costs) for route in one.routes]
    ours = {(next(iter(route.methods)), route.path.replace("{owner_id}", "{id}")) for route in routes}
    assert told == ours


@pytest.mark.parametrize("line", re.findall(r"^gaelp .+$", PAGE, re.MULTILINE))
def test_commands_are_known(line):
    words = shlex.split(line)[1:]
    done = CliRunner().invoke(cli, [*words, "--help"])
    assert done.exit_code == 0, done.output
    assert f"{words[0]} {words[1]}" in " ".join(done.output.split())


def test_defaults_are_as_the_page_says():
    read = Settings()
    for value in (read.quota_memory, read.quota_storage):
        assert f"({int(value) // 1024**3} GiB)" in PAGE
    assert f"({read.quota_cpu_milli // 1000} cores)" in PAGE
    assert units(micro_of("12.50")) in PAGE
