"""Accepted invocations that somebody pays for: held at once, cut at their bound, settled once."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gaelp_tasks.models import InvocationResult, Tier, Usage
from gaelp_tasks.models.acceptance import End, Standing
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.services import quotas
from gaelp_tasks.services.accepting import settle
from gaelp_tasks.services.forsaken import Found, give_back
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis]

ASKED = {"prompt": "Why is the sky blue?"}


def told(name, *, tokens, stop_reason="stop"):
    result = InvocationResult(
        id=name, agent="chat", model="m", node="n", tier=Tier.INTERACTIVE, priority=5, text="t", attempts=1,
        stop_reason=stop_reason, usage=Usage(prompt_tokens=10, completion_tokens=tokens),
    )  # fmt: skip
    standing = Standing.DONE if stop_reason == "stop" else Standing.CUT
    return End(name, standing, stop_reason, result=result.model_dump(mode="json"))


async def ended(api, end):
    at = api.state
    async with at.accepting.outbox.writing() as session:
        return await settle(at.accepting.outbox, session, [end], datetime.now(UTC), at.purse)


async def asked_of(api, name):
    async with api.state.db.reading() as session:
        [row] = (await api.state.accepting.outbox.known(session, [name])).values()
    return json.loads(row.asked)


async def budget(api, kind, owner, micro):
    answer = await api.as_(Role.ADMIN).put(f"/api/v1/budgets/{kind}/{owner}", json={"limit_micro": micro})
    assert answer.status_code == 200


async def standing(api, kind, owner):
    one = (await api.as_().get(f"/api/v1/budgets/{kind}/{owner}")).json()
    return one["available_micro"], one["held_micro"], one["spent_micro"]


async def submit(api, **more):
    return await api.as_().post("/api/v1/invocations", json=ASKED | more)


async def test_a_user_with_a_budget_pays_what_its_answer_cost(api):
    await budget(api, "user", "user", 1_000_000)
    name = (await submit(api)).json()["id"]
    assert (await asked_of(api, name))["most_tokens"] == 4096
    available, held, spent = await standing(api, "user", "user")
    assert spent == 0
    assert held == 1_000_000 - available > 4096 * 0.8
    assert await ended(api, told(name, tokens=100)) == [name]
    assert await ended(api, told(name, tokens=100)) == []
    assert await standing(api, "user", "user") == (1_000_000 - 82, 0, 82)
    [line, other] = (await api.as_().get("/api/v1/costs/lines")).json()
    assert {line["kind"], other["kind"]} == {"prompt_tokens", "completion_tokens"}
    assert line["key"].startswith(f"invocation:{name}@")


async def test_the_last_of_a_budget_pays_for_a_shorter_answer_and_then_for_none(api):
    await budget(api, "user", "user", 2500)
    name = (await submit(api)).json()["id"]
    tokens = (await asked_of(api, name))["most_tokens"]
    assert 1 <= tokens < 200
    refused = await submit(api)
    assert refused.status_code == 402
    assert "0.00 left" in refused.json()["detail"]
    assert await ended(api, told(name, tokens=10**9, stop_reason="budget")) == [name]
    available, held, spent = await standing(api, "user", "user")
    assert held == 0
    assert available + spent == 2500
    assert spent == 2 + -(-tokens * 8 // 10), "what a node reports counts up to the bound"


async def test_what_never_ran_costs_nothing(api):
    await budget(api, "user", "user", 1_000_000)
    name = (await submit(api, budget_micro=100_000)).json()["id"]
    await ended(api, End(name, Standing.FAILED, error="NodeFailed: it broke"))
    assert await standing(api, "user", "user") == (1_000_000, 0, 0)
    assert (await submit(api, budget_micro=1)).status_code == 402


async def test_without_a_budget_nothing_is_held_and_the_ledger_knows_it_all_the_same(api):
    name = (await submit(api)).json()["id"]
    assert "most_tokens" not in await asked_of(api, name)
    await ended(api, told(name, tokens=100)._replace(wasted_tokens=9))
    kinds = (await api.as_().get("/api/v1/costs", params={"by": ["kind"]})).json()
    assert [(one["kind"], one["quantity"], one["amount_micro"]) for one in kinds] == [
        ("completion_tokens", 100, 80),
        ("prompt_tokens", 10, 2),
        ("wasted", 9, 0),
    ]
    [one] = (await api.as_().get("/api/v1/costs", params={"by": ["user"]})).json()
    assert (one["user"], one["amount_micro"]) == ("user", 82)


async def test_an_agent_that_reaches_its_budget_stops(api):
    user = api.as_()
    made = await user.post("/api/v1/agents", json={"name": "a", "type": "research", "budget_limit": 0.0025})
    agent = made.json()["id"]
    await budget(api, "user", "user", 1_000_000)
    name = (await submit(api, agent_id=agent)).json()["id"]
    assert (await asked_of(api, name))["most_tokens"] < 200
    assert (await standing(api, "agent", agent))[0] == 0
    assert (await submit(api, agent_id=agent)).status_code == 402
    await ended(api, told(name, tokens=10, stop_reason="budget"))
    assert (await standing(api, "agent", agent))[2] == (await standing(api, "user", "user"))[2] == 10


async def deployed(api, **spec):
    """A real_deployment agent that may be called."""
    user, spec = api.as_(), {"budget_limit": 50.0, "safety_policy": {"run_s": 60}} | spec
    asked = {"name": "a", "type": "real_deployment"} | spec
    agent = (await user.post("/api/v1/agents", json=asked)).json()["id"]
    made = await user.post(f"/api/v1/agents/{agent}/deployments")
    at = f"/api/v1/agents/{agent}/deployments/{made.json()['id']}"
    assert (await api.as_(Role.OPERATOR).post(f"{at}/approve")).status_code == 200
    assert (await user.post(f"{at}/start")).status_code == 200
    return agent


async def status_of(api, agent):
    return (await api.as_().get(f"/api/v1/agents/{agent}")).json()["status"]


async def status_soon(api, agent):
    """Of the agent, once all that a budget has refused or cut was looked at, which is done in turn."""
    last = await deployed(api, budget_limit=0.000001)
    assert (await submit(api, agent_id=last)).status_code == 402
    while await status_of(api, last) != "paused":
        await asyncio.sleep(0.01)
    return await status_of(api, agent)


async def test_a_caller_whose_own_money_ends_stops_no_agent(api):
    agent = await deployed(api)
    await budget(api, "user", "user", 2500)
    first = (await submit(api, agent_id=agent)).json()["id"]
    assert (await submit(api, agent_id=agent)).status_code == 402, "all that the user has is held"
    assert await status_soon(api, agent) == "running"
    await ended(api, told(first, tokens=10**9, stop_reason="budget"))
    assert await status_soon(api, agent) == "running", "the user's budget has cut it"
    await budget(api, "user", "user", 1_000_000)
    for cap in ({"most_tokens": 1}, {"budget_micro": 2500}):
        name = (await submit(api, agent_id=agent, **cap)).json()["id"]
        await ended(api, told(name, tokens=10**9, stop_reason="budget"))
    assert await status_soon(api, agent) == "running", "the call has asked for no more"


async def test_what_calls_hold_of_a_budget_is_not_spent_and_stops_no_agent(api):
    agent = await deployed(api, budget_limit=1.0)
    first = (await submit(api, agent_id=agent, most_tokens=10**9)).json()["id"]
    assert (await standing(api, "agent", agent))[0] < 2000, "it holds nearly all"
    assert (await submit(api, agent_id=agent)).status_code == 402
    assert await status_soon(api, agent) == "running"
    await ended(api, told(first, tokens=10))
    assert (await submit(api, agent_id=agent)).status_code == 202


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({}, 4096),
        ({"options": {"num_predict": 9000}}, 9000),
        ({"options": {"num_predict": 9000}, "most_tokens": 50}, 50),
        ({"options": {"num_predict": 90_000}}, 32_768),
        ({"options": {"num_predict": -1}}, 4096),
    ],
)
async def test_an_answer_is_paid_for_as_long_as_it_asks_to_be(api, asked, most):
    await budget(api, "user", "user", 1_000_000)
    made = await api.as_().post("/api/v1/agents", json={"name": "a", "type": "evaluation"})
    name = (await submit(api, agent_id=made.json()["id"], **asked)).json()["id"]
    assert (await asked_of(api, name))["most_tokens"] == most


async def test_what_one_run_may_cost_stops_no_agent(api):
    agent = await deployed(api, safety_policy={"cost_per_run": 0.0025})
    name = (await submit(api, agent_id=agent)).json()["id"]
    await ended(api, told(name, tokens=10**9, stop_reason="budget"))
    assert await status_soon(api, agent) == "running"


async def test_an_answer_that_its_agents_budget_has_cut_stops_it(api):
    agent = await deployed(api, budget_limit=0.0025)
    await budget(api, "user", "user", 1_000_000)
    name = (await submit(api, agent_id=agent)).json()["id"]
    tokens = (await asked_of(api, name))["most_tokens"]
    assert await status_soon(api, agent) == "running"
    await ended(api, told(name, tokens=tokens, stop_reason="budget"))
    assert await status_soon(api, agent) == "paused"


async def test_where_both_have_too_little_it_is_the_agent_that_is_told_of(api):
    await budget(api, "user", "user", 1)
    agent = await deployed(api, budget_limit=0.000001)
    refused = await submit(api, agent_id=agent)
    assert (refused.status_code, f"agent {agent}" in refused.json()["detail"]) == (402, True)
    assert await status_soon(api, agent) == "paused"


async def test_a_simulation_agent_is_paid_by_who_calls_it_and_never_by_its_own_budget(api):
    made = await api.as_().post("/api/v1/agents", json={"name": "a", "type": "simulation"})
    agent = made.json()["id"]
    await budget(api, "agent", agent, 0)
    await budget(api, "user", "user", 0)
    assert (await submit(api, agent_id=agent)).status_code == 402
    await budget(api, "user", "user", 1_000_000)
    name = (await submit(api, agent_id=agent)).json()["id"]
    assert (await standing(api, "user", "user"))[1] > 0
    assert await ended(api, told(name, tokens=100)) == [name]
    assert await standing(api, "user", "user") == (1_000_000 - 82, 0, 82)
    assert await standing(api, "agent", agent) == (0, 0, 0)
    [one] = (await api.as_().get("/api/v1/costs", params={"by": ["agent", "user"]})).json()
    assert (one["agent"], one["user"], one["amount_micro"]) == (str(agent), "user", 82)
    seen = await api.as_().get(f"/api/v1/agents/{agent}")
    assert seen.json()["status"] == made.json()["status"]


async def test_an_agent_of_another_tenant_pays_for_nobody(api):
    made = await api.as_(tenant="other").post("/api/v1/agents", json={"name": "a", "type": "research"})
    assert (await submit(api, agent_id=made.json()["id"])).status_code == 404


async def test_what_is_held_for_work_that_is_gone_is_given_back(api):
    at, now = api.state, timedelta(0)
    await budget(api, "user", "user", 1_000_000)
    await submit(api)
    async with at.db.writing() as session:
        await quotas.hold(session, "job:999", "ann", Resources(gpus=1), tenant="", settings=at.settings)
        await quotas.hold(session, "other:1", "ann", Resources(gpus=1), tenant="", settings=at.settings)
    assert await give_back(at.db) == Found(0, 0), "what is young is not looked at"
    assert await give_back(at.db, old=now) == Found(0, 1), "there is no such job"
    assert (await quotas.show(at.db, "", "ann", at.settings)).held.gpus == 1, "nobody knows whose"
    async with at.db.writing() as session:
        await session.execute(text("DELETE FROM accepted"))
    assert await give_back(at.db, old=now) == Found(1, 0)
    assert await standing(api, "user", "user") == (1_000_000, 0, 0)


async def test_a_model_that_talks_without_end_is_cut_where_the_money_ends(start_worker, api):
    async def endless(_: Request, reply: Reply) -> None:
        reply.head()
        while not reply.gone.is_set():
            reply.token("word ")
            await asyncio.sleep(0.001)

    await budget(api, "user", "user", 2500)
    async with ScriptedServer() as node:
        node.on("/api/chat", endless)
        await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, GAELP_DEFAULT_MODEL="tiny")
        user = api.as_()
        name = (await submit(api)).json()["id"]
        most = (await asked_of(api, name))["most_tokens"]
        told = {}
        while told.get("stop_reason") is None:
            await asyncio.sleep(0.05)
            told = (await user.get(f"/api/v1/invocations/{name}")).json()
        assert (told["stop_reason"], told["result"]["text"]) == ("budget", "word " * most)
        while (await standing(api, "user", "user"))[1]:
            await asyncio.sleep(0.05)
        available, _, spent = await standing(api, "user", "user")
        assert available + spent == 2500
        assert spent > most * 0.8
