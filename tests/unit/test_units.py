"""What stands in the systemd units of the programs."""

import os
import re
import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.cli.units import PROGRAMS, of_system, of_user, unit_name, unit_text, untouched
from gaelp_tasks.settings import Settings

ROOT = Path(__file__).parents[2]
SYSTEM, USER = of_system(), of_user(Path("/home/me/.config"))
GRACE_S = Settings.model_fields["drain_grace_s"].default
GAELP = "/opt/gaelp/bin/gaelp"
words = st.text(st.characters(exclude_categories=("C", "Z"), max_codepoint=0x2FF) | st.just(" "))


def text(program="worker", place=SYSTEM, *more, grace_s=GRACE_S, gaelp=GAELP):
    return unit_text(program, [gaelp, program, *more], place, grace_s=grace_s)


def read(written):
    """The sections of a unit; what it says twice fails, as none of ours has to."""
    parser = RawConfigParser(comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str
    parser.read_string(written)
    return parser


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("place", [SYSTEM, USER], ids=["system", "user"])
def test_every_unit_runs_its_program_and_starts_it_again(program, place):
    unit = read(text(program, place))
    service = unit["Service"]
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert service["ExecStart"].split()[:2] == [GAELP, program]
    assert (service["Type"], service["Restart"], service["KillSignal"]) == ("exec", "always", "SIGTERM")
    assert int(service["RestartSec"]) >= 5, "a program that cannot run shall not keep a core busy"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0", "nor be given up"
    assert (service["MemoryAccounting"], service["NoNewPrivileges"], service["UMask"]) == (
        "yes",
        "yes",
        "0077",
    )


def test_a_worker_is_given_its_grace_and_a_margin():
    assert int(read(text())["Service"]["TimeoutStopSec"]) == 40
    assert "GAELP_DRAIN_GRACE_S (30)" in text()


@given(st.floats(0, 1e6))
def test_whatever_the_grace_systemd_waits_longer_than_the_worker(grace_s):
    assert int(read(text(grace_s=grace_s))["Service"]["TimeoutStopSec"]) >= grace_s + 5
    assert read(text("beat", grace_s=grace_s))["Service"]["TimeoutStopSec"] == "15"


def test_exit_statuses_mean_what_the_page_says():
    page = (ROOT / "docs/operating.md").read_text()
    [table] = re.findall(r"\| exit status \| \|\n\| --- \| --- \|\n((?:\|.*\n)+)", page)
    told = {number for row in table.splitlines() for number in re.findall(r"\d+", row.split("|")[1])}
    service = read(text())["Service"]
    well, final = service["SuccessExitStatus"].split(), service["RestartPreventExitStatus"].split()
    assert {"0", *well, "1"} == told
    assert final == ["2"], "a failure (1) is tried again, wrong usage never works"


def test_a_worker_starts_after_the_network_and_its_model_server():
    unit = read(text())["Unit"]
    assert unit["Wants"].split() == ["network-online.target", "ollama.service"]
    assert set(unit["After"].split()) >= {*unit["Wants"].split(), "redis.service", "postgresql.service"}
    assert "ollama" not in read(text("beat"))["Unit"]["Wants"]
    assert "Wants" not in read(text("worker", USER))["Unit"], (
        "units of a user do not see those of the machine"
    )


def test_a_unit_of_the_machine_may_do_little():
    service = read(text())["Service"]
    assert (service["DynamicUser"], service["User"]) == ("yes", "gaelp")
    assert service["EnvironmentFile"] == "/etc/gaelp/gaelp.env"
    assert (service["ProtectSystem"], service["ProtectHome"], service["PrivateTmp"]) == (
        "strict",
        "yes",
        "yes",
    )
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["StateDirectory"] == "gaelp"
    assert service["Environment"] == "XDG_STATE_HOME=%S", "where SQLite is when nobody says"
    # they would hide GPUs, the memory of the machine, or be taken for the memory of the node
    assert not service.keys() & {"PrivateDevices", "ProtectClock", "ProcSubset", "ProtectProc", "MemoryMax"}


def test_a_unit_of_a_user_reads_that_users_settings():
    service = read(text("worker", USER))["Service"]
    assert service["EnvironmentFile"] == "%E/gaelp/gaelp.env"
    assert "User" not in service
    assert read(text("worker", USER))["Install"]["WantedBy"] == "default.target"
    assert read(text())["Install"]["WantedBy"] == "multi-user.target"


def test_a_worker_has_a_name_that_stays_unless_another_one_is_given():
    assert read(text())["Service"]["ExecStart"] == f"{GAELP} worker --name=gaelp@%H"
    assert read(text("worker", SYSTEM, "--name=a@b"))["Service"]["ExecStart"] == f"{GAELP} worker --name=a@b"


@given(words)
def test_any_word_is_read_back_as_it_was(word):
    [_, _, said, name] = shlex.split(read(text("worker", SYSTEM, f"--x={word}"))["Service"]["ExecStart"])
    assert said.replace("%%", "%").replace("$$", "$") == f"--x={word}"
    assert len(re.findall(r"(?<!%)(?:%%)*%(?!%)", said)) == 0, "no % of a word is systemd's"
    assert name == "--name=gaelp@%H"


def test_a_unit_is_known_for_untouched_until_somebody_edits_it():
    written = text()
    assert untouched(written)
    assert not untouched(written.replace("RestartSec=10", "RestartSec=20"))
    assert not untouched(f"{written}# mine\n")
    assert not untouched(written.partition("\n[Unit]")[2])
    assert not untouched("")


@pytest.mark.parametrize("place", [SYSTEM, USER], ids=["system", "user"])
def test_systemd_finds_nothing_wrong_with_them(place, tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on PATH")
    gaelp = tmp_path / "a folder" / "gaelp"
    gaelp.parent.mkdir()
    gaelp.write_text("#!/bin/sh\n")
    gaelp.chmod(0o755)
    files = [tmp_path / unit_name(name) for name in PROGRAMS]
    for name, file in zip(PROGRAMS, files, strict=True):
        file.write_text(text(name, place, "--loglevel=debug", "100 % of $it", gaelp=str(gaelp)))
    command = [program, "verify", "--man=no", *(["--user"] if place.by_user else []), *map(str, files)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}  # what a login gives its user
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    wrong = [line for line in done.stderr.splitlines() if "gaelp" in line]
    assert (done.returncode, wrong) == (0, []), done.stderr
