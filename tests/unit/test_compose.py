"""compose.yaml is valid, and every service in it is locked down."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gaelp_tasks.cli.output import print_json
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot
from gaelp_tasks.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = YAML(typ="safe").load(ROOT / "compose.yaml")
SERVICES = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("gaelp-tasks:")}
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()

# what runs as root inside its container, and why
ROOTS = {"ollama": "its image keeps models under /root"}
SECRET = re.compile(r"password|secret|token|login|key", re.IGNORECASE)


@pytest.fixture(params=SERVICES)
def service(request):
    return SERVICES[request.param]


def test_the_file_follows_the_compose_specification():
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", "compose.yaml"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert "version" not in COMPOSE


def test_the_cluster_has_its_five_services():
    assert set(SERVICES) == {"redis", "ollama", "worker", "beat", "flower"}
    assert {"worker", "beat", "flower"} == OURS


def test_a_service_may_do_nothing_it_does_not_need(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - set(ROOTS)))
def test_a_service_runs_as_somebody_else_than_root(name):
    assert SERVICES[name]["user"].partition(":")[0] not in {"", "root", "0"}


def test_a_service_has_a_memory_limit(service):
    assert service["mem_limit"]


def test_a_service_says_whether_it_is_well(service):
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])


def test_an_image_has_a_version(service):
    name, _, tag = service["image"].rpartition(":")
    assert name
    assert tag != "latest"
    assert re.search(r"\d", tag)


def test_what_is_published_is_published_on_loopback_only():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"flower": ["127.0.0.1:5555:5555"]}


def test_redis_is_on_a_network_of_its_own():
    assert SERVICES["redis"]["networks"] == ["bus"]
    assert COMPOSE["networks"]["bus"]["internal"] is True


def test_redis_keeps_what_it_was_given():
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_no_secret_is_in_an_environment(service):
    assert not [name for name in service.get("environment", {}) if SECRET.search(name)]
    assert "@" not in str(service.get("environment", ""))


def test_the_login_of_flower_comes_from_a_file_and_is_needed():
    assert SERVICES["flower"]["secrets"] == ["flower_login"]
    assert set(COMPOSE["secrets"]["flower_login"]) == {"file"}
    assert "/run/secrets/flower_login" in SERVICES["flower"]["entrypoint"][2]


@pytest.mark.parametrize("flags", ["", "--control"])
def test_flower_is_read_only_unless_asked_and_its_login_is_in_no_argument(tmp_path, monkeypatch, flags):
    (tmp_path / "flower_login").write_text("me:pw\n")
    gaelp = tmp_path / "gaelp"
    gaelp.write_text('#!/bin/sh\necho "$GAELP_FLOWER_LOGIN" "$@"\n')
    gaelp.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert SERVICES["flower"]["command"] == "${GAELP_FLOWER_FLAGS:-}"
    start = [word.replace("$$", "$") for word in SERVICES["flower"]["entrypoint"]]
    start[2] = start[2].replace("/run/secrets", str(tmp_path))
    said = subprocess.run([*start, *flags.split()], capture_output=True, text=True, check=True).stdout
    everywhere = "0.0.0.0"  # noqa: S104  inside its container; compose publishes it on loopback
    assert said.split() == ["me:pw", "flower", "--address", everywhere, *flags.split()]


def test_every_setting_named_here_is_a_setting(service):
    ours = [name for name in service.get("environment", {}) if name.startswith("GAELP_")]
    assert {name.removeprefix("GAELP_").lower() for name in ours} <= set(Settings.model_fields)


def test_a_draining_worker_is_given_the_time_it_wants():
    grace = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_grace_s"].default


@pytest.mark.parametrize(("host", "healthy"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_a_worker_is_well_when_it_announces_itself(tmp_path, monkeypatch, capsys, host, healthy):
    said = NodeSnapshot(
        worker=f"gaelp@{host}",
        url="http://ollama:11434",
        pid=1,
        healthy=True,
        started_at=0.0,
        seen_at=0.0,
        slots=1,
        memory=MemorySnapshot(total_bytes=2, free_bytes=1, source="host"),
    )
    print_json({"nodes": [said.model_dump()], "queues": {}})
    (tmp_path / "said.json").write_text(capsys.readouterr().out)
    gaelp = tmp_path / "gaelp"
    gaelp.write_text(f"#!/bin/sh\ncat {tmp_path}/said.json\n")
    gaelp.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    kind, command = SERVICES["worker"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert (subprocess.run(["sh", "-c", command.replace("$$", "$")], check=False).returncode == 0) is healthy


def test_the_dockerfile_copies_only_what_the_context_holds():
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in re.findall(r"(?m)^COPY (?!--from)(.+)$", DOCKERFILE)
        for source in line.split()[:-1]
    }
    assert copied == kept
    assert not [path for path in kept if not (ROOT / path).exists()]


def test_the_dockerfile_needs_no_frontend_image_and_installs_by_hash():
    assert "syntax=" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    installs = re.findall(r"pip install ([^\n]+)", DOCKERFILE)
    assert installs
    assert all("--require-hashes" in line or line.strip() == "--no-deps /wheels/*.whl" for line in installs)
    assert re.search(r"(?m)^USER 1000", DOCKERFILE.rpartition("FROM ")[2])
