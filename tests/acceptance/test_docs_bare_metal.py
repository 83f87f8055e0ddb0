"""docs/bare-metal.md says what is so: its commands are run in order, but for those of root."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gaelp_tasks import app
from gaelp_tasks.cli.units import PROGRAMS, unit_name
from gaelp_tasks.settings import Settings, read_settings
from support.redis_server import RedisServer

#: a dozen commands, of which each takes a second of a processor
pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs/bare-metal.md").read_text()
#: what belongs to root or to the machine; each call is written down
STAND_INS = ("systemctl", "createuser", "createdb", "python3")
SUDO = """#!/bin/bash
[[ $1 != -u ]] || shift 2
exec "$@"
"""


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def machine(tmp_path):
    """`machine(script)` runs it where /etc, /opt and root's programs are the test's own; what it printed."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    pip = tmp_path / "opt/gaelp/bin/pip"
    pip.parent.mkdir(parents=True)
    for stand_in in (*(programs / name for name in STAND_INS), pip):
        stand_in.write_text(f'#!/bin/sh\necho "{stand_in.name} $*" >>{calls}\n')
        stand_in.chmod(0o755)
    (programs / "sudo").write_text(SUDO)
    (programs / "sudo").chmod(0o755)
    (pip.parent / "gaelp").symlink_to(Path(sys.executable).with_name("gaelp"))
    path = os.pathsep.join([str(programs), str(tmp_path / "usr/local/bin"), "/usr/bin", "/bin"])
    (tmp_path / "usr/local/bin").mkdir(parents=True)

    def run(script, **settings):
        here = re.sub(r"(?<![\w.-])/(etc|opt|usr/local)/", rf"{tmp_path}/\1/", script)
        here = here.replace("--install", f"--install --to {tmp_path}/etc/systemd/system")
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail"],
            input=here,
            env={"PATH": path, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stderr}{done.stdout}"
        return done.stdout

    run.root, run.calls = tmp_path, calls
    return run


def test_the_commands_of_the_page_do_what_it_says(machine, start_worker, broker, node):
    *before, first_run, upgrading, away = blocks("bash")
    there = {"GAELP_BROKER_URL": broker.url, "GAELP_OLLAMA_NODES": node, "GAELP_NUM_PARALLEL": "4"}
    worker = start_worker(**there, GAELP_MAX_OUTPUT_BYTES="200")  # a tiny model talks without end
    units = machine.root / "etc/systemd/system"

    machine("".join(before))
    assert {path.name for path in units.iterdir()} == {unit_name(program) for program in PROGRAMS}
    settings = machine.root / "etc/gaelp/gaelp.env"
    assert settings.stat().st_mode & 0o777 == 0o600
    assert read_settings(settings) == Settings(), "a template: nothing is set"

    said = machine(first_run, **there)
    assert worker.name in said
    assert "fail" not in said

    machine(upgrading.replace("gaelp@gpu-1", worker.name), **there)
    assert not app.redis.exists(app.keys.cordon(worker.name)), "it was resumed"

    machine(away)
    assert not (units / "gaelp-worker.service").exists()
    assert not settings.exists()
    assert machine.calls.read_text().splitlines() == [
        "createuser --pwprompt gaelp",
        "createdb --owner=gaelp gaelp",
        f"python3 -m venv {machine.root}/opt/gaelp",
        "pip install gaelp-tasks[worker,postgres]",
        "systemctl daemon-reload",
        "systemctl enable --now gaelp-worker.service",
        "systemctl daemon-reload",
        "systemctl enable --now " + " ".join(map(unit_name, ("beat", "metrics", "flower", "api"))),
        "pip install --upgrade gaelp-tasks[worker,postgres]",
        "systemctl daemon-reload",
        "systemctl restart gaelp-worker.service",
        "systemctl disable --now gaelp-worker.service",
        "systemctl daemon-reload",
    ]


def test_the_settings_of_the_page_are_settings(tmp_path):
    [text] = blocks("ini")
    (tmp_path / "gaelp.env").write_text(text)
    read = read_settings(tmp_path / "gaelp.env")
    told = dict(line.split("=", 1) for line in text.splitlines())
    del told["GAELP_FLOWER_LOGIN"]  # of `gaelp flower` alone, and no setting
    for name, value in told.items():
        found = getattr(read, name.removeprefix("GAELP_").lower())
        assert (",".join(found) if isinstance(found, tuple) else str(found)) == value
    assert read.model_fields_set == {name.removeprefix("GAELP_").lower() for name in told}
    [hosts] = blocks("hosts")
    assert hosts.split() == ["127.0.0.1", urlsplit(read.ollama_nodes[0]).hostname]


def test_redis_takes_the_lines_of_the_page_and_a_worker_takes_that_redis():
    [conf] = blocks("conf")
    lines = [line.split() for line in conf.splitlines() if not line.startswith("#")]
    with RedisServer() as server, server.client() as client:
        for name, value in lines:
            client.config_set(name, value)
        assert client.config_get("maxmemory")["maxmemory"] == str(4 * 1024**3)
        info = client.info()
    assert (info["maxmemory_policy"], info["aof_enabled"]) == ("noeviction", 1)


def test_the_page_explains_what_is_in_a_unit(machine):
    machine("/opt/gaelp/bin/gaelp worker --install")
    text = (machine.root / "etc/systemd/system/gaelp-worker.service").read_text()
    table = PAGE.partition("| in the unit | why |\n")[2].partition("\n\n")[0]
    for name, value in re.findall(
        r"`(\w+)(?:=([^`]+))?`", "\n".join(row.split("|")[1] for row in table.splitlines())
    ):
        assert re.search(rf"(?m)^{name}={re.escape(value)}", text), (name, value)
