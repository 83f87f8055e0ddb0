"""`gaelp worker --install` and its like: what they write, what they leave alone, what they say."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gaelp_tasks.cli import installing
from gaelp_tasks.cli.app import cli
from gaelp_tasks.cli.units import PROGRAMS, Place, unit_name

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A machine of its own."""
    made = Place(tmp_path / "systemd", tmp_path / "etc/gaelp.env", by_user=False)
    monkeypatch.setattr(installing, "of_system", lambda: made)
    monkeypatch.setattr(installing, "HIDDEN", ())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GAELP_BROKER_URL", "redis://127.0.0.1:1/0")  # nothing of it is asked
    return made


def gaelp(*words, status=0):
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == status, done.output
    return done


def lines(text, key):
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_unit_is_written_with_the_program_that_ran_this(program, place):
    said = gaelp(program, "--install").stdout
    path = place.folder / unit_name(program)
    [command] = lines(path.read_text(), "ExecStart")
    assert command.split()[:2] == [str(Path(sys.executable).with_name("gaelp")), program]
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(place.folder.iterdir()) == [path], "nothing else is left there"
    steps = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    assert said.startswith(f"{path} is written. Next:")
    assert [step.split()[-1] for step in steps] == [str(place.settings), "daemon-reload", path.name]
    assert steps[1:] == ["sudo systemctl daemon-reload", f"sudo systemctl enable --now {path.name}"]


def test_what_is_next_leaves_out_what_is_there(place):
    place.settings.parent.mkdir()
    place.settings.write_text("")
    told = json.loads(gaelp("worker", "--install", "--json").stdout)
    assert told["next"] == [
        "sudo systemctl daemon-reload",
        "sudo systemctl enable --now gaelp-worker.service",
    ]
    assert (told["unit"], told["written"]) == ("gaelp-worker.service", True)
    assert Path(told["path"]).read_text() == told["text"]


def test_a_unit_of_a_user_lies_with_that_user(tmp_path):
    told = json.loads(gaelp("beat", "--install", "--user", "--json").stdout)
    assert told["path"] == str(tmp_path / "config/systemd/user/gaelp-beat.service")
    assert told["next"][0].endswith(f"install -D -m 600 /dev/stdin {tmp_path}/config/gaelp/gaelp.env")
    assert told["next"][1:] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now gaelp-beat.service",
    ]
    assert "sudo" not in str(told["next"])


def test_elsewhere_is_said_how_it_gets_where_it_belongs(tmp_path, place):
    folder = tmp_path / "a folder"
    told = json.loads(gaelp("flower", "--install", "--to", str(folder), "--json").stdout)
    assert (folder / "gaelp-flower.service").exists()
    assert not place.folder.exists()
    assert told["next"][1] == (
        f"sudo install -D -m 644 '{folder}/gaelp-flower.service' {place.folder}/gaelp-flower.service"
    )


def test_a_dash_prints_it_and_writes_nothing(place):
    assert gaelp("metrics", "--install", "--to", "-").stdout.startswith("# gaelp-metrics.service, written by")
    told = json.loads(gaelp("metrics", "--install", "--to", "-", "--json").stdout)
    assert (told["path"], told["written"]) == (None, False)
    assert not place.folder.exists()


def test_options_of_the_call_are_those_of_the_unit(place):
    words = ("--name", "big@host", "--loglevel=debug", "--install", "--pidfile=a b")
    gaelp("worker", *words)
    [command] = lines((place.folder / "gaelp-worker.service").read_text(), "ExecStart")
    assert command.endswith(' worker --name=big@host --loglevel=debug "--pidfile=a b"')
    gaelp("flower", "--install", "--control", "--port", "5566", "--max_tasks=10")
    [command] = lines((place.folder / "gaelp-flower.service").read_text(), "ExecStart")
    assert sorted(command.split()[2:]) == ["--control", "--max_tasks=10", "--port=5566"]


def test_the_time_to_end_is_that_of_the_settings_file_below_the_environment(place, monkeypatch):
    def stop_s():
        return lines(gaelp("worker", "--install", "--to", "-").stdout, "TimeoutStopSec")

    assert stop_s() == ["40"]
    place.settings.parent.mkdir()
    place.settings.write_text('# mine\nGAELP_DRAIN_GRACE_S=120\nGAELP_AGENTS={"a": "b:C"}\nOTHER="x y"\n')
    assert stop_s() == ["130"]
    monkeypatch.setenv("GAELP_DRAIN_GRACE_S", "60.5")
    assert stop_s() == ["71"]


def test_a_settings_file_that_is_wrong_is_told_by_its_variable(place):
    place.settings.parent.mkdir()
    place.settings.write_text("GAELP_DRAIN_GRACE_S=soon\n")
    done = CliRunner().invoke(cli, ["worker", "--install"])
    assert "GAELP_DRAIN_GRACE_S" in str(done.exception)


def test_an_edited_unit_is_left_alone_unless_forced(place):
    path = place.folder / "gaelp-worker.service"
    gaelp("worker", "--install")
    ours = path.read_text()
    assert "as it should be" in gaelp("worker", "--install").stdout
    gaelp("worker", "--install", "--loglevel=debug")
    assert "--loglevel=debug" in path.read_text(), "what nobody has edited follows the call"

    mine = ours.replace("RestartSec=10", "RestartSec=60")
    path.write_text(mine)
    refused = gaelp("worker", "--install", status=1)
    assert (path.read_text(), refused.stdout) == (mine, "")
    assert f"{path} was edited" in refused.stderr
    assert "systemctl edit gaelp-worker.service" in refused.stderr
    gaelp("worker", "--install", "--force")
    assert path.read_text() == ours


def test_where_it_may_not_be_written_it_says_where_and_how(place, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    done = gaelp("worker", "--install", status=1)
    path = place.folder / "gaelp-worker.service"
    assert f"{path} cannot be written (Permission denied): run `sudo " in done.stderr
    assert all(word in done.stderr for word in ("--user", "--to FOLDER", "--to -"))
    assert len(done.stderr.strip().splitlines()) == 1
    assert not path.exists()


@pytest.mark.parametrize("words", [("--user",), ("--to", "x"), ("--force",), ("--json",)])
def test_what_belongs_to_an_installation_is_wrong_without_one(words):
    assert "belong to --install" in gaelp("beat", *words, status=2).stderr


def test_a_program_that_units_do_not_see_is_told(monkeypatch, place):
    monkeypatch.setattr(installing, "HIDDEN", (Path(sys.executable).parent,))
    said = gaelp("beat", "--install", "--to", "-")
    assert "does not see" in said.stderr
    assert said.stdout.startswith("# gaelp-beat.service")
    assert "does not see" not in gaelp("beat", "--install", "--user", "--to", "-").stderr
    monkeypatch.setattr(installing, "HIDDEN", ())
    assert not gaelp("beat", "--install", "--to", "-").stderr


def test_help_tells_of_it_on_every_program():
    for program in PROGRAMS:
        assert "--install" in gaelp(program, "--help").stdout
