"""`gaelp agents` and `gaelp audit` against a real API."""

import csv
import io
import json
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from gaelp_tasks.cli import api_client
from gaelp_tasks.cli.app import cli
from gaelp_tasks.models.caller import Role

EXAMPLE = Path(__file__).parents[2] / "examples/agent-config.json"

pytestmark = [pytest.mark.redis]


@pytest.fixture
def gaelp(api_server, monkeypatch):
    """Runs `gaelp ...` as somebody; gives what it printed, after it ended as it should."""
    monkeypatch.setenv("GAELP_API_URL", api_server.url)

    def run(*words, code=0, role=Role.USER, given=None):
        monkeypatch.setenv("GAELP_API_TOKEN", api_server.token(role))
        api_client.load_settings.cache_clear()
        api_client.api.cache_clear()
        done = CliRunner().invoke(cli, [str(word) for word in words], input=given)
        api_client.api().close()
        api_client.api.cache_clear()
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout + done.stderr + (str(done.exception) if code == 1 else "")

    return run


def words_of(text):
    return " ".join(text.split())


def test_an_agent_is_registered_changed_deployed_and_removed(gaelp, api_server, tmp_path):
    assert "There are no agents" in gaelp("agents", "list")
    made = json.loads(gaelp("agents", "register", EXAMPLE, "--json"))
    asked = json.loads(EXAMPLE.read_text())
    assert {name: made[name] for name in asked} == asked
    agent = made["id"]
    assert f"{agent} campaign-optimizer-v2 real_deployment pending 1 user 5000.0" in words_of(
        gaelp("agents", "list")
    )
    assert "budget_limit 5000.0" in gaelp("agents", "show", agent)
    assert "version 2" in gaelp("agents", "edit", agent, "-", given='{"description": "better"}')
    assert "version 3" in gaelp("agents", "rollback", agent, 1)
    assert [line.split()[0] for line in gaelp("agents", "versions", agent).splitlines()[1:]] == [
        "3",
        "2",
        "1",
    ]

    assert "3 production 2 pending user" in words_of(gaelp("agents", "deploy", agent, "--replicas", 2))
    assert "Only operators approve." in gaelp("agents", "approve", agent, 1, code=1)
    assert "approved user operator" in words_of(gaelp("agents", "approve", agent, 1, role=Role.OPERATOR))
    assert "running" in gaelp("agents", "start", agent, 1)
    assert "running" in gaelp("agents", "deployments", agent, "--status", "running")
    assert f"{agent}: paused" in gaelp("agents", "status", agent, "paused")
    assert "cannot become pending" in gaelp("agents", "status", agent, "pending", code=1)
    assert "stopped by user" in gaelp("agents", "stop", agent, 1)

    with api_server.session() as session:
        body = '{"step": 3, "reward": 0.25, "resources": {"cpu": 1.5}}'
        answer = requests.post(
            f"{api_server.url}/api/v1/agents/{agent}/metrics", data=body, headers=session.headers, timeout=10
        )
        assert answer.status_code == 201
    assert "- 3 0.25 cpu=1.5" in words_of(gaelp("agents", "metrics", agent))
    assert f"{agent}: terminated" in gaelp("agents", "remove", agent, "--yes")

    text = gaelp("audit", "export", "--agent", agent, role=Role.OPERATOR)
    acts = [json.loads(line)["act"] for line in text.splitlines()]
    assert acts[:7] == ["register", "change", "roll back", "deploy", "approve", "approve", "start"]
    assert acts[-1] == "terminate"
    table = gaelp("audit", "export", "--agent", agent, "--format", "csv", role=Role.OPERATOR)
    assert [row["act"] for row in csv.DictReader(io.StringIO(table))] == acts
    assert "roll back" in gaelp("audit", "list", "--agent", agent, role=Role.OPERATOR)
    assert gaelp("audit", "export", "--to", "2026-01-01", role=Role.OPERATOR) == ""
    assert gaelp("audit", "list", "--from", "2026-01-01T00:00:00+02:00", "--json", role=Role.OPERATOR) != "[]"
    assert "is no moment" in words_of(gaelp("audit", "list", "--from", "yesterday", code=2))
    assert "needs the role operator" in gaelp("audit", "list", code=1)


@pytest.mark.parametrize("file", ["/nowhere/at/all.json", "README.md"])
def test_a_file_that_is_no_json_is_refused(gaelp, file):
    assert "cannot be read" in words_of(gaelp("agents", "register", file, code=2))


def test_a_secret_is_read_and_not_printed(gaelp):
    agent = json.loads(gaelp("agents", "register", EXAMPLE, "--json"))["id"]
    assert "GAELP_SECRET_KEYS" in gaelp("agents", "secrets", "set", agent, "KEY", given="hush", code=1)
    assert "no secrets" in gaelp("agents", "secrets", "list", agent)
    assert "no secret of this name" in gaelp("agents", "secrets", "remove", agent, "KEY", code=1)
    assert "needs the role admin" in gaelp("agents", "secrets", "reseal", code=1)
