"""`gaelp jobs` against a real API."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gaelp_tasks.cli import api_client
from gaelp_tasks.cli.app import cli
from gaelp_tasks.models.caller import Role

pytestmark = [pytest.mark.redis]
JOB = Path(__file__).parents[2] / "examples" / "job-config.json"


@pytest.fixture
def gaelp(api_server, monkeypatch):
    """Runs `gaelp ...` as a user; gives what it printed, after it ended as it should."""
    monkeypatch.setenv("GAELP_API_URL", api_server.url)
    monkeypatch.setenv("GAELP_API_TOKEN", api_server.token(Role.USER))

    def run(*words, code=0, **more):
        api_client.load_settings.cache_clear()
        api_client.api.cache_clear()
        done = CliRunner().invoke(cli, ("jobs", *words), **more)
        api_client.api().close()
        api_client.api.cache_clear()
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout + done.stderr + (str(done.exception) if code == 1 else "")

    return run


def registered():
    made = api_client.api().post("agents", {"name": "trained", "type": "research"})
    return made["id"]


def test_a_job_is_submitted_shown_listed_paused_resumed_and_cancelled(gaelp, tmp_path):
    gaelp("list")
    body = json.loads(JOB.read_text()) | {"agent_id": registered(), "name": "mine [x]"}
    file = tmp_path / "job.json"
    file.write_text(json.dumps(body))
    job = json.loads(gaelp("submit", str(file), "--json"))
    number = str(job["id"])
    assert f"job {int(number) + 1}: queued" in gaelp("submit", "-", input=json.dumps(body))
    shown = gaelp("show", number)
    assert "mine [x]" in shown
    assert '"learning_rate": 0.05' in shown
    assert json.loads(gaelp("show", number, "--json"))["checkpoints"] == []
    assert "mine [x]" in gaelp("list", "--status", "queued")
    assert {one["name"] for one in json.loads(gaelp("list", "--json"))} == {"mine [x]"}
    assert "paused" in gaelp("pause", number)
    assert "queued" in gaelp("resume", number)
    assert "only a paused one" in gaelp("resume", number, code=1)
    assert gaelp("logs", number) == ""
    assert "cancelled" in gaelp("cancel", number)
    assert gaelp("logs", number, "--follow") == ""
    assert json.loads(gaelp("cancel", str(int(number) + 1), "--json"))["status"] == "cancelled"
    assert "no training job" in gaelp("show", "999999", code=1)
    assert "no such file" in " ".join(gaelp("submit", str(tmp_path / "none.json"), code=2).lower().split())
