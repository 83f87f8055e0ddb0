"""Who is given which secret of compose.yaml, and what it may do with it."""

import re
import subprocess
from pathlib import Path

import pytest

from gaelp_tasks.settings import Settings
from support.compose import COMPOSE, ROOT, SERVICES, asked_for, filled

SECRETS = (ROOT / "docker/secrets.sh").read_text()
RULES = (ROOT / "docker/redis/users.acl").read_text().splitlines()
DATABASE_PAGE = (ROOT / "docs/database.md").read_text()
SECRET = re.compile(r"password|secret|token|login|key|url", re.IGNORECASE)


def user_of(name):
    """The Redis user of a service."""
    return asked_for(SERVICES[name]).get("gaelp_broker_url", "").removesuffix("_broker_url")


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
