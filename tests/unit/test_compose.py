"""compose.yaml is valid, every service in it is locked down, and its parts fit each other."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gaelp_tasks.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE = YAML(typ="safe").load(TEXT)
SERVICES = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("gaelp-tasks:")}
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
SECRETS = (ROOT / "docker/secrets.sh").read_text()
PROMETHEUS = YAML(typ="safe").load(ROOT / "docker/prometheus/prometheus.yaml")
RULES = (ROOT / "docker/redis/users.acl").read_text().splitlines()
DATABASE_PAGE = (ROOT / "docs/database.md").read_text()
SECRET = re.compile(r"password|secret|token|login|key|url", re.IGNORECASE)
#: where a page that prometheus.yaml names is served, by the variable that says so
PORTS = {"metrics": "GAELP_METRICS_ADDRESS", "worker": "GAELP_METRICS_PORT", "api": "GAELP_METRICS_ADDRESS"}


def filled(text, **given):
    """As compose fills in its variables, with those that are given and no other."""
    while (found := re.search(r"(?<!\$)\$\{(\w+)(?::-((?:[^${}]|\$(?!\{))*))?\}", text)) is not None:
        text = text[: found.start()] + str(given.get(found[1]) or found[2] or "") + text[found.end() :]
    return text


def asked_for(service):
    """The secrets of a service by the name of their file under /run/secrets."""
    told = service.get("secrets", [])
    return {
        filled(one if isinstance(one, str) else one["target"]): filled(
            one if isinstance(one, str) else one["source"]
        )
        for one in told
    }


def user_of(name):
    """The Redis user of a service."""
    return asked_for(SERVICES[name]).get("gaelp_broker_url", "").removesuffix("_broker_url")


@pytest.fixture(params=SERVICES)
def service(request):
    return SERVICES[request.param]


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


# --- secrets ---


def test_no_secret_is_in_an_environment(service):
    named = {name: value for name, value in service.get("environment", {}).items() if SECRET.search(name)}
    assert all(name.endswith("_FILE") and value.startswith("/run/secrets/") for name, value in named.items())
    assert "@" not in str(service.get("environment", ""))


def test_every_secret_is_declared_made_and_used():
    declared = {name: filled(one["file"]) for name, one in COMPOSE["secrets"].items()}
    assert declared == {name: f"./.run/secrets/{name}" for name in declared}
    used = {source for service in SERVICES.values() for source in asked_for(service).values()}
    assert used == set(declared)


def test_a_service_reads_only_files_that_it_asks_for(service):
    told = {
        key: service[key] for key in ("command", "entrypoint", "environment", "healthcheck") if key in service
    }
    read = set(re.findall(r"/run/secrets/(\w+)", str(told)))
    if service is SERVICES["redis"]:  # who backs up goes in there and reads it
        read |= set(re.findall(r"exec -T redis .*/run/secrets/(\w+)", DATABASE_PAGE))
    ours = {f"gaelp_{name}" for name in Settings.model_fields}
    assert read | (asked_for(service).keys() & ours) == asked_for(service).keys()


def test_the_pages_that_are_published_ask_for_a_login():
    assert "flower_login" in asked_for(SERVICES["flower"])
    grafana = SERVICES["grafana"]["environment"]
    assert Path(grafana["GF_SECURITY_ADMIN_PASSWORD__FILE"]) == Path("/run/secrets/grafana_password")
    assert not [name for name in grafana if "ANONYMOUS" in name or "AUTH" in name]


def test_each_program_has_the_redis_user_of_its_role():
    assert {name: user_of(name) for name in SERVICES if user_of(name)} == {
        "worker": "worker",
        "beat": "beat",
        "api": "api",
        "metrics": "metrics",
        "flower": "reader",
        "producer": "producer",
    }
    users = {rule.split()[1] for rule in RULES}
    assert users == {"default", "health", "worker", "beat", "producer", "api", "reader", "metrics", "backup"}
    assert RULES[0] == "user default off"


def test_the_users_are_those_that_the_page_on_redis_describes():
    described = {
        line.split()[2]: line.split()[3:]
        for line in re.findall(r"(?m)^ACL SETUSER .*$", (ROOT / "docs/redis.md").read_text())
    }
    for rule in RULES:
        _, user, *words = rule.split()
        if user not in {"default", "health"}:
            ours = [">change-me" if word == f"#@{user}@" else word for word in words]
            assert ours == described.pop(user)
    assert not described


def test_those_who_write_sql_and_no_others_have_its_password():
    assert {name for name in SERVICES if "gaelp_database_url" in asked_for(SERVICES[name])} == {
        "worker",
        "beat",
        "api",
    }


def test_the_api_alone_signs_and_only_workers_unseal_beside_it():
    def readers(name):
        return {service for service in SERVICES if name in asked_for(SERVICES[service])}

    assert readers("gaelp_jwt_secret") == {"api"}
    assert readers("gaelp_secret_keys") == {"api", "worker"}  # training jobs get their agents' secrets


def test_all_workers_share_the_folder_of_training_jobs():
    [volume] = SERVICES["worker"]["volumes"]
    name, path = volume.split(":")
    assert name in COMPOSE["volumes"]
    assert path in re.search(r"RUN install -d .*", DOCKERFILE)[0], "so that it is the user's own"
    state = re.search(r"XDG_STATE_HOME=(\S+)", DOCKERFILE)[1]
    assert path == f"{state}/gaelp/training"


def test_two_replicas_of_the_api_run_and_leave_the_cluster_to_the_exporter():
    assert SERVICES["api"]["deploy"]["replicas"] == 2
    first, _, last = filled(SERVICES["api"]["ports"][0]).split(":")[1].partition("-")
    assert int(last) - int(first) == 1, "a port for each"
    assert SERVICES["api"]["environment"]["GAELP_API_TELLS_CLUSTER"] == "false"


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


# --- the parts fit each other ---


def test_every_setting_named_here_is_a_setting(service):
    ours = [name for name in service.get("environment", {}) if name.startswith("GAELP_")]
    assert {name.removeprefix("GAELP_").lower() for name in ours} <= set(Settings.model_fields)


def test_a_draining_worker_is_given_the_time_it_wants():
    grace = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_grace_s"].default


@pytest.mark.parametrize(
    ("given", "budget", "memory"),
    [
        ({}, "", "8g"),
        ({"OLLAMA_MEMORY": "16g"}, "", "16g"),
        ({"GAELP_MEMORY_BUDGET": "24GiB"}, "24GiB", "8g"),
    ],
)
def test_a_worker_is_told_what_was_said_and_the_limit_of_its_model_server(given, budget, memory):
    told = {name: filled(value, **given) for name, value in SERVICES["worker"]["environment"].items()}
    assert (told["GAELP_MEMORY_BUDGET"], told["OLLAMA_MEMORY"]) == (budget, memory)
    assert filled(SERVICES["ollama"]["mem_limit"], **given) == memory
    assert Settings(memory_budget=budget or memory).memory_budget > 0


def test_a_program_is_asked_for_its_progress():
    for name in ("worker", "beat", "api", "metrics"):
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "gaelp", "health", name]


def test_prometheus_asks_services_at_the_ports_where_they_answer():
    asked = {}
    for job in PROMETHEUS["scrape_configs"]:
        for place in job.get("static_configs", []):
            asked |= dict(target.split(":") for target in place["targets"])
        for place in job.get("dns_sd_configs", []):
            asked |= {name: str(place["port"]) for name in place["names"]}
    told = {name: SERVICES[name]["environment"][variable] for name, variable in PORTS.items()}
    assert asked == {name: where.rpartition(":")[2] for name, where in told.items()}
    assert all("watch" in SERVICES[name]["networks"] for name in (*asked, "prometheus"))
    assert SERVICES["worker"]["environment"]["GAELP_METRICS_ADDRESS"].startswith("0.0.0.0:")


def test_prometheus_alertmanager_receiver_and_grafana_find_each_other():
    [managers] = PROMETHEUS["alerting"]["alertmanagers"]
    receivers = (ROOT / "docker/prometheus/alertmanager.yaml").read_text()
    source = (ROOT / "docker/grafana/provisioning/datasources/prometheus.yaml").read_text()
    told = [
        *managers["static_configs"][0]["targets"],
        *re.findall(r"url: http://([\w:]+)", receivers),
        *re.findall(r"url: http://([\w:]+)", source),
    ]
    assert told == ["alertmanager:9093", "receiver:9095", "prometheus:9090"]
    for place in told:
        name, port = place.split(":")
        assert f":{port}/" in str(SERVICES[name]["healthcheck"]["test"])
        assert "watch" in SERVICES[name]["networks"]


def test_grafana_finds_its_provisioning_and_prometheus_its_configuration():
    mounted = {
        name: dict(volume.split(":")[:2] for volume in SERVICES[name]["volumes"])
        for name in ("grafana", "prometheus", "alertmanager")
    }
    boards = (ROOT / "docker/grafana/provisioning/dashboards/gaelp.yaml").read_text()
    at = mounted["grafana"]["./docker/grafana/dashboards"]
    assert re.search(r"(?m)^ +path: (.+)$", boards)[1] == at
    assert mounted["grafana"]["./docker/grafana/provisioning"] == "/etc/grafana/provisioning"
    [config] = [word for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file=")]
    assert config == f"--config.file={mounted['prometheus']['./docker/prometheus']}/prometheus.yaml"
    [config] = [word for word in SERVICES["alertmanager"]["command"] if word.startswith("--config.file=")]
    assert config.removeprefix("--config.file=") in mounted["alertmanager"].values()


# --- the image ---


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


def test_a_program_that_compose_starts_by_its_path_is_in_the_image_or_mounted():
    started = {
        word for one in SERVICES.values() for word in one.get("entrypoint", []) if word.endswith(".py")
    }
    copied = set(re.findall(r"(?m)^COPY \S+ (\S+\.py)$", DOCKERFILE))
    mounted = {volume.split(":")[1] for one in SERVICES.values() for volume in one.get("volumes", [])}
    assert started == {"/opt/gaelp/beside.py", "/opt/gaelp/receiver.py"}
    assert started <= copied | mounted


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
