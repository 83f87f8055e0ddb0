"""The parts of compose.yaml fit each other, and their image."""

import re

import pytest
from ruamel.yaml import YAML

from gaelp_tasks.settings import Settings
from support.compose import COMPOSE, ROOT, SERVICES, filled

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
PROMETHEUS = YAML(typ="safe").load(ROOT / "docker/prometheus/prometheus.yaml")
#: where a page that prometheus.yaml names is served, by the variable that says so
PORTS = {"metrics": "GAELP_METRICS_ADDRESS", "worker": "GAELP_METRICS_PORT", "api": "GAELP_METRICS_ADDRESS"}


# --- the parts fit each other ---


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
