"""`gaelp api` as a program: it starts, refuses to, ends; who may use it is told on the command line."""

import json
import signal
import socket
import subprocess
import sys

import pytest
import requests

from gaelp_tasks.models.caller import Role
from support.api_server import ApiServer

pytestmark = pytest.mark.redis


def api(settings, timeout_s=60):
    return subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", "api"],
        env=settings,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def elsewhere(tmp_path, broker):
    """An API that is not started: its settings alone."""
    return ApiServer(tmp_path)


def test_it_serves_and_its_metrics_need_no_token(api_server):
    assert requests.get(f"{api_server.url}/api/v1/status", timeout=5).status_code == 401
    with api_server.session() as ann:
        assert ann.get(f"{api_server.url}/api/v1/status", timeout=5).status_code == 200
    assert "gaelp_redis_up 1.0" in requests.get(api_server.metrics_url, timeout=5).text


def test_users_keys_and_tokens_are_made_on_the_command_line(api_server):
    gaelp, url = api_server.gaelp, f"{api_server.url}/api/v1/users/me"
    added = gaelp("users", "add", "ann", "--role", "operator", "--tenant", "acme", "--json")
    assert json.loads(added.stdout)["role"] == "operator", added.stderr
    assert gaelp("users", "add", "ann").returncode == 1
    token = gaelp("token", "create", "--user", "ann").stdout.strip()
    ann = {"name": "ann", "tenant": "acme", "role": "operator"}
    assert requests.get(url, headers=bearer(token), timeout=5).json() == ann
    too_much = gaelp("token", "create", "--user", "ann", "--role", "admin")
    assert (too_much.returncode, too_much.stdout) == (1, "")
    key = gaelp("keys", "create", "--user", "ann", "--name", "ci").stdout.strip()
    assert requests.get(url, headers=bearer(key), timeout=5).json() == ann
    assert key not in gaelp("keys", "list", "--json").stdout
    assert "ann" in gaelp("users", "list").stdout
    edited = gaelp("users", "edit", "ann", "--disable", "--json")
    assert json.loads(edited.stdout)["disabled"]
    assert gaelp("token", "create", "--user", "ann").returncode == 1
    assert gaelp("users", "remove", "ann").returncode == 0
    assert json.loads(gaelp("users", "list", "--json").stdout) == []
    assert json.loads(gaelp("keys", "list", "--json").stdout) == []


@pytest.mark.parametrize("words", [("--ttl", "soon"), ("--ttl", "0"), ("--user", " "), ("--role", "king")])
def test_a_token_that_cannot_be_is_a_mistake_of_usage(elsewhere, words):
    made = elsewhere.gaelp("token", "create", *words)
    assert (made.returncode, made.stdout) == (2, "")


def test_without_a_secret_it_does_not_start_and_says_how_to_make_one(elsewhere):
    told = api(elsewhere.environment | {"GAELP_JWT_SECRET": ""})
    assert told.returncode == 1
    assert "GAELP_JWT_SECRET" in told.stderr
    assert "openssl rand -hex 32" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_taken_address_is_told_in_one_sentence(elsewhere):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = api(elsewhere.environment | {"GAELP_API_ADDRESS": f"127.0.0.1:{port}"})
    assert told.returncode == 1
    [line] = told.stderr.splitlines()
    assert "GAELP_API_ADDRESS" in line


def test_a_taken_address_of_metrics_costs_only_those(elsewhere):
    with socket.create_server(("127.0.0.1", elsewhere.metrics_port)), elsewhere:
        assert "GAELP_METRICS_ADDRESS" in elsewhere.log()
        with elsewhere.session(Role.OPERATOR) as ann:
            assert "gaelp_redis_up 1.0" in ann.get(f"{elsewhere.url}/metrics", timeout=5).text


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_in_good_order(elsewhere, sent, code):
    with elsewhere:
        elsewhere.process.send_signal(sent)
        assert elsewhere.process.wait(timeout=20) == code
        assert "Traceback" not in elsewhere.log()
