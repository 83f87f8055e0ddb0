"""`gaelp quotas` and `gaelp budgets` against a real API."""

import json

import pytest
from typer.testing import CliRunner

from gaelp_tasks.cli import api_client
from gaelp_tasks.cli.app import cli
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.money import Charge, CostKind, Owner, OwnerKind
from gaelp_tasks.services import budgets

pytestmark = [pytest.mark.redis]


@pytest.fixture
def gaelp(api_server, monkeypatch):
    """Runs `gaelp ...` as an admin; gives what it printed, after it ended as it should."""
    monkeypatch.setenv("GAELP_API_URL", api_server.url)

    def run(*words, code=0, role=Role.ADMIN):
        monkeypatch.setenv("GAELP_API_TOKEN", api_server.token(role))
        api_client.load_settings.cache_clear()
        api_client.api.cache_clear()
        done = CliRunner().invoke(cli, words)
        api_client.api().close()
        api_client.api.cache_clear()
        assert done.exit_code == code, (done.output, done.exception)
        return " ".join((done.stdout + done.stderr).split()) + (str(done.exception) if code == 1 else "")

    return run


def test_a_quota_is_set_and_shown_as_people_write_quantities(gaelp):
    assert "0 of 1500m *" in gaelp("quotas", "set", "ann", "--cpu", "1.5", "--memory", "64Gi", "--gpu", "0")
    shown = gaelp("quotas", "show", "ann")
    assert "ann 0 of 1500m * 0 of 64Gi * 0 of 0 * 0 of 100Gi 0 of 64" in shown
    assert "* a limit of his own" in shown
    assert "0 of 64Gi" in gaelp("quotas", "list")
    [one] = json.loads(gaelp("quotas", "list", "--json"))
    assert one == json.loads(gaelp("quotas", "show", "ann", "--json"))
    assert one["own"]["cpu_milli"] == 1500
    assert "user 0 of 10 0 of 20Gi" in gaelp("quotas", "show", role=Role.USER)
    assert "cpu" in gaelp("quotas", "set", "ann", "--cpu", "much", code=1)
    assert "needs the role admin" in gaelp("quotas", "set", "ann", code=1, role=Role.USER)


async def paid(api_server):
    db = Database(api_server.environment["GAELP_DATABASE_URL"])
    async with db.writing() as session:
        owners = [Owner(OwnerKind.AGENT, "1"), Owner(OwnerKind.USER, "ann")]
        await budgets.hold(session, "invocation:a", owners, 2_000_000, tenant="")
        charges = [Charge(CostKind.PROMPT_TOKENS, 1000, 200_000), Charge(CostKind.CANCELLED, 50, 50_000)]
        await budgets.settle(session, "invocation:a", 250_000, charges, tenant="")
    await db.close()


async def test_a_budget_is_set_spent_and_told_line_by_line(gaelp, api_server, tmp_path):
    assert "There are no budgets" in gaelp("budgets", "list")
    (tmp_path / "agent.json").write_text('{"name": "one", "type": "research"}')
    gaelp("agents", "register", str(tmp_path / "agent.json"))
    assert "agent 1 1,000.50 1,000.50 0.00 0.00 month" in gaelp(
        "budgets", "set", "agent", "1", "1,000.50", "--period", "month"
    )
    await paid(api_server)
    assert "agent 1 1,000.50 1,000.25 0.00 0.25 month" in gaelp("budgets", "show", "agent", "1")
    assert json.loads(gaelp("budgets", "list", "--json"))[0]["spent_micro"] == 250_000
    assert "settle held spent 0.25 invocation:a" in gaelp("budgets", "entries", "agent", "1")
    assert len(json.loads(gaelp("budgets", "entries", "agent", "1", "--limit", "2", "--json"))) == 2
    costs = gaelp("budgets", "costs")
    assert "cancelled 50 tokens 0.05 prompt_tokens 1,000 tokens 0.20 total 0.25" in costs
    assert "1 ann 0.25 total 0.25" in gaelp("budgets", "costs", "--by", "agent", "--by", "user")
    assert json.loads(gaelp("budgets", "costs", "--user", "bob", "--json")) == []
    assert "is no amount" in gaelp("budgets", "set", "agent", "1", "much", code=2)
    assert "There is no budget of agent 6" in gaelp("budgets", "show", "agent", "6", code=1)
    assert "There is no agent 6." in gaelp("budgets", "set", "agent", "6", "1", code=1)
