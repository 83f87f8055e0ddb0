"""compose.yaml is valid, and every service in it is locked down."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from support.compose import COMPOSE, OURS, ROOT, SERVICES, TEXT, filled

# --- the file itself ---


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


def compose(*words, **given):
    return subprocess.run(
        ["docker", "compose", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | given,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(
    shutil.which("docker") is None or compose("version").returncode != 0, reason="no docker compose on PATH"
)
@pytest.mark.parametrize("profile", ["cpu", "gpu", "sim"])
def test_composes_own_reading_of_the_file_is_ours(profile):
    done = compose("--profile", profile, "config", "--format", "json", GAELP_NODES="3")
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    servers = {"cpu": "ollama", "gpu": "ollama-gpu", "sim": "sim"}
    there = {servers[profile], "worker"}
    assert {
        name for name, one in read["services"].items() if one.get("deploy", {}).get("replicas") == 3
    } == there
    assert read["services"]["worker"]["environment"]["PROJECT"] == "gaelp"
    others = set(servers.values()) - there
    assert not others & read["services"].keys()


def test_the_cluster_has_its_services():
    assert set(SERVICES) == {
        *("redis", "postgres", "ollama", "ollama-gpu", "sim", "worker", "beat", "api"),
        *("metrics", "flower"),
        *("prometheus", "alertmanager", "receiver", "grafana", "producer"),
    }
    assert {"sim", "worker", "beat", "api", "metrics", "flower", "receiver", "producer"} == OURS


def test_each_profile_has_one_model_server_and_every_one_is_called_ollama():
    servers = {
        name: one for name, one in SERVICES.items() if "nodes" in one.get("networks", []) and name != "worker"
    }
    assert {name: one["profiles"] for name, one in servers.items()} == {
        "ollama": ["cpu"],
        "ollama-gpu": ["gpu"],
        "sim": ["sim"],
    }
    assert all(one["networks"]["nodes"]["aliases"] == ["ollama"] for one in servers.values())
    assert {one["deploy"]["replicas"] for one in servers.values()} == {
        SERVICES["worker"]["deploy"]["replicas"]
    }
    waited_for = SERVICES["worker"]["depends_on"]
    assert all(waited_for[name] == {"condition": "service_healthy", "required": False} for name in servers)
    [device] = SERVICES["ollama-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_two_beats_run():
    assert SERVICES["beat"]["deploy"]["replicas"] == 2


def test_the_variables_of_the_file_are_described():
    page = (ROOT / "docs/cluster.md").read_text()
    used = set(re.findall(r"\$\{(\w+)", TEXT)) - {"COMPOSE_PROJECT_NAME"}
    assert used == set(re.findall(r"(?m)^\| `([A-Z_]+)` \|", page))


# --- locked down ---


def test_a_service_may_do_nothing_it_does_not_need(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices", "userns_mode"} & set(service)
    assert "docker.sock" not in str(service)


def test_a_service_runs_as_somebody_else_than_root(service):
    assert service["user"].partition(":")[0] not in {"", "root", "0"}


def test_a_service_has_limits(service):
    assert service["mem_limit"]
    assert 0 < service["pids_limit"] <= 1024
    assert service["cpus"].startswith("${"), "somebody with fewer or more processors can say so"
    # an engine refuses more than its machine has: two are the least that all of this is meant for
    assert 0 < float(filled(service["cpus"])) <= 2 or service["image"].startswith("gaelp-ollama:")


def test_a_service_says_whether_it_is_well(service):
    if service["restart"] == "no":
        assert service["healthcheck"] == {"disable": True}, "it runs once, for somebody who waits"
        return
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])


def test_an_image_has_a_version(service):
    name, _, tag = service["image"].rpartition(":")
    assert name
    assert tag != "latest"
    assert re.search(r"\d", tag)


def test_a_folder_of_ours_is_mounted_for_reading_only_and_is_there(service):
    for volume in service.get("volumes", []):
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            assert rest.endswith(":ro")
            assert (ROOT / source).exists()
        else:
            assert source in COMPOSE["volumes"]


def test_what_is_built_is_built_from_files_that_are_there(service):
    if "build" in service:
        folder = ROOT / service["build"]["context"]
        assert (folder / service["build"]["dockerfile"]).is_file()
        assert ":" in service["image"]


def test_only_the_api_flower_and_grafana_are_published_and_on_loopback_only():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert {name: list(map(filled, ports)) for name, ports in published.items()} == {
        "api": ["127.0.0.1:8000-8001:8000"],
        "flower": ["127.0.0.1:5555:5555"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert not [name for name, service in SERVICES.items() if "expose" in service]


def test_what_keeps_data_is_on_a_network_of_its_own():
    assert SERVICES["redis"]["networks"] == SERVICES["postgres"]["networks"] == ["bus"]
    assert COMPOSE["networks"]["bus"]["internal"] is True
    assert COMPOSE["networks"]["watch"]["internal"] is True
    used = {network for one in SERVICES.values() for network in one["networks"]}
    assert used == set(COMPOSE["networks"])


def test_redis_keeps_what_it_was_given():
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "--aclfile /run/secrets/redis_users" in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


@pytest.mark.parametrize(
    ("text", "given", "becomes"),
    [
        ("${A:-b}", {}, "b"),
        ("${A:-b}", {"A": "c"}, "c"),
        ("${A:-${B:-8g}}", {}, "8g"),
        ("${A:-${B:-8g}}", {"B": "9g"}, "9g"),
        ("x:${A:-1}:2", {}, "x:1:2"),
        ("${A:-}", {}, ""),
        ("$$(cat)", {}, "$$(cat)"),
    ],
)
def test_variables_are_filled_in_as_compose_does(text, given, becomes):
    assert filled(text, **given) == becomes
