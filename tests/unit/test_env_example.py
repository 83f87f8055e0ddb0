"""`.env.example` is what `gaelp config --env` prints."""

from pathlib import Path

from typer.testing import CliRunner

from gaelp_tasks.cli.app import cli
from gaelp_tasks.settings import load_settings

ROOT = Path(__file__).parents[2]


def test_the_example_lists_every_setting_as_the_command_does():
    load_settings.cache_clear()
    printed = CliRunner().invoke(cli, ["config", "--env"])
    assert printed.exit_code == 0
    assert (ROOT / ".env.example").read_text() == printed.stdout
