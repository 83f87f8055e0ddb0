"""From a registration to production and back: approved by others, bounded by a budget, all of it audited."""

import asyncio
import csv
import io
import json

import pytest

from gaelp_tasks.errors import Conflict, NotAllowed, NotFound, PolicyViolated
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.money import Charge, CostKind
from gaelp_tasks.services import audit, budgets, quotas
from gaelp_tasks.services.agents import invocable, trainable
from gaelp_tasks.services.audit import keep_refusals, trail
from gaelp_tasks.services.deployments import spent
from support.api import api_client

SEED = {
    "name": "campaign-optimizer-v2",
    "type": "real_deployment",
    "docker_image": "gcr.io/gaelp/optimizer:v2.0",
    "resource_requirements": {"cpu": "4", "memory": "8Gi", "gpu": "1"},
    "budget_limit": 50.0,
    "safety_policy": {"output_tokens": 100},
    "config": {"system_prompt": "Be careful."},
}
ANN = Caller(name="ann")


@pytest.fixture
async def both(broker, sql_url):
    """The API on SQLite and on PostgreSQL."""
    async with api_client(sql_url) as made:
        yield made


class People:
    """Who asks."""

    def __init__(self, api):
        self.ann = api.as_(Role.USER, name="ann")
        self.op = api.as_(Role.OPERATOR, name="op")

    async def register(self, **changed):
        answer = await self.ann.post("/api/v1/agents", json=SEED | changed)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    async def deployed(self, **changed):
        agent = await self.register(**changed)
        assert (await self.ann.post(f"/api/v1/agents/{agent}/deployments")).status_code == 201
        for client, verb in ((self.op, "approve"), (self.ann, "start")):
            answer = await client.post(f"/api/v1/agents/{agent}/deployments/{agent}/{verb}")
            assert answer.status_code == 200, answer.text
        return agent


async def call(at, agent_id, caller=ANN, **given):
    async with trail(at.db) as session:
        return await invocable(session, agent_id, caller, settings=at.settings, **given)


async def told(api, path="/api/v1/audit/export", **asked):
    answer = await api.as_(Role.OPERATOR).get(path, params=asked)
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_real_deployment_is_approved_started_bounded_and_stopped(both):
    people, at = People(both), both.state
    agent = await people.register()
    with pytest.raises(PolicyViolated, match="only while an approved deployment"):
        await call(at, agent)
    asked_for = (await people.ann.post(f"/api/v1/agents/{agent}/deployments", json={"replicas": 2})).json()
    assert (asked_for["status"], asked_for["environment"], asked_for["version"]) == (
        "pending",
        "production",
        1,
    )
    one = f"/api/v1/agents/{agent}/deployments/{asked_for['id']}"
    assert (await people.ann.post(f"{one}/start")).status_code == 403
    assert (await people.ann.post(f"{one}/approve")).status_code == 403
    assert (await both.as_(Role.OPERATOR, name="ann").post(f"{one}/approve")).status_code == 403
    approved = (await people.op.post(f"{one}/approve")).json()
    assert (approved["status"], approved["approved_by"]) == ("approved", "op")
    assert (await people.op.post(f"{one}/approve")).status_code == 409
    assert (await people.ann.post(f"{one}/start")).json()["status"] == "running"
    assert (await people.ann.get(f"/api/v1/agents/{agent}")).json()["status"] == "running"

    able = await call(at, agent, subject="invocation:x")
    assert (able.version, able.system_prompt, able.limits.output_tokens) == (1, "Be careful.", 100)
    assert [str(owner) for owner in able.owners] == [f"agent {agent}", "user ann"]

    channel = at.redis.pubsub()
    await channel.subscribe(at.app.keys.told(agent))
    await channel.get_message(timeout=5)
    async with at.db.writing() as session:
        await budgets.hold(session, "invocation:x", able.owners, 50_000_000, tenant="")
        lines = [Charge(CostKind.COMPLETION_TOKENS, 7, 50_000_000)]
        await budgets.settle(session, "invocation:x", 50_000_000, lines, tenant="")
    assert await spent(at, "", agent, "The budget of agent has 0.00 left.")
    assert not await spent(at, "", agent, "The budget of agent has 0.00 left.")
    events = [json.loads((await channel.get_message(timeout=5))["data"]) for _ in range(2)]
    assert [event["event"] for event in events] == ["budget", "state"]
    assert events[0]["data"]["stopped"] is True
    await channel.aclose()
    assert (await people.ann.get(f"/api/v1/agents/{agent}")).json()["status"] == "paused"
    [deployment] = (await people.ann.get(f"/api/v1/agents/{agent}/deployments?status=stopped")).json()
    assert deployment["why"] == "its budget is spent"
    assert (await people.ann.get(one)).json() == deployment
    assert (await people.ann.get(f"{one}9")).status_code == 404
    with pytest.raises(Conflict, match="paused"):
        await call(at, agent)

    kept = await told(both, agent_id=agent)
    assert [(one["kind"], one["act"], one["rule"]) for one in kept] == [
        ("decision", "register", ""),
        ("violation", "invoke", "deployment"),
        ("decision", "deploy", ""),
        ("violation", "start", "approval"),
        ("violation", "approve", "operator"),
        ("violation", "approve", "four eyes"),
        ("decision", "approve", ""),
        ("violation", "approve", "moves"),
        ("decision", "start", ""),
        ("decision", "invoke", ""),
        ("spend", "completion_tokens", ""),
        ("violation", "spend", "budget"),
        ("decision", "stop", ""),
        ("decision", "move", ""),
        ("violation", "spend", "budget"),
        ("violation", "invoke", "state"),
    ]
    assert kept[10]["amount_micro"] == 50_000_000
    assert await told(both, agent_id=agent + 1) == []
    assert await told(both, to=kept[0]["at"]) == []
    assert len(await told(both, **{"from": kept[11]["at"]})) == 5


async def test_what_many_ask_at_once_happens_once(both):
    people = People(both)
    agent = await people.register()
    one = f"/api/v1/agents/{agent}"
    answers = await asyncio.gather(*(people.ann.patch(one, json={"description": str(n)}) for n in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["version"] for answer in answers) == list(range(2, 10))
    await people.ann.post(f"{one}/deployments")
    answers = await asyncio.gather(*(people.op.post(f"{one}/deployments/1/approve") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    answers = await asyncio.gather(*(people.ann.post(f"{one}/deployments/1/start") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert (await quotas.show(both.state.db, "", "ann", both.settings)).held.gpus == 1
    ends = await asyncio.gather(*(spent(both.state, "", agent, "Spent.") for _ in range(8)))
    assert sum(ends) == 1
    assert (await quotas.show(both.state.db, "", "ann", both.settings)).held.gpus == 0


async def test_an_audit_is_a_table_too_and_no_cell_of_it_is_a_formula(api):
    people = People(api)
    await people.register()
    sly = api.as_(Role.USER, name="=1+1")
    assert (await sly.delete("/api/v1/agents/1")).status_code == 403
    text = (await people.op.get("/api/v1/audit/export?format=csv")).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["act"], row["actor"], row["allowed"]) for row in rows] == [
        ("register", "ann", "True"),
        ("terminate", "'=1+1", "False"),
    ]
    assert (await people.ann.get("/api/v1/audit/export")).status_code == 403


async def test_an_audit_of_many_pages_is_in_the_order_of_time(api, monkeypatch):
    monkeypatch.setattr(audit, "AT_ONCE", 3)
    people, at = People(api), api.state
    agent = await people.register(type="research")
    for number in range(7):
        able = await call(at, agent)
        async with at.db.writing() as session:
            await budgets.hold(session, f"invocation:{number}", able.owners, 10, tenant="")
            lines = [Charge(CostKind.COMPLETION_TOKENS, 1, 2), Charge(CostKind.PROMPT_TOKENS, 1, 1)]
            await budgets.settle(session, f"invocation:{number}", 3, lines, tenant="")
    kept = await told(api)
    assert [one["at"] for one in kept] == sorted(one["at"] for one in kept)
    assert len(kept) == 1 + 7 * 3
    assert len({(one["kind"], one["id"]) for one in kept}) == len(kept)


async def test_a_version_that_runs_is_the_one_that_was_approved(api):
    people, at = People(api), api.state
    agent = await people.deployed()
    changed = {"config": {"system_prompt": "Be reckless."}, "budget_limit": 40}
    assert (await people.ann.patch(f"/api/v1/agents/{agent}", json=changed)).json()["version"] == 2
    able = await call(at, agent)
    assert (able.version, able.system_prompt) == (1, "Be careful.")


@pytest.mark.parametrize("stopped", [False, True], ids=["while it runs", "once it has stopped"])
async def test_an_approved_budget_is_not_raised_by_its_owner(api, stopped):
    people = People(api)
    agent = await people.deployed()
    if stopped:
        await people.ann.post(f"/api/v1/agents/{agent}/deployments/{agent}/stop")
    more = {"budget_limit": 60}
    for changed in (more, {"budget_limit": None}):
        assert (await people.ann.patch(f"/api/v1/agents/{agent}", json=changed)).status_code == 403
    await people.ann.post(f"/api/v1/agents/{agent}/deployments/{agent}/start")
    assert (await people.op.patch(f"/api/v1/agents/{agent}", json=more)).status_code == 200
    budget = await budgets.show(api.state.db, "", (await call(api.state, agent)).owners[0])
    assert budget.limit_micro == 60_000_000


async def test_what_an_admin_has_lowered_is_not_raised_again_by_its_owner_and_counts_in_its_period(api):
    people = People(api)
    agent = await people.deployed()
    path, place = f"/api/v1/agents/{agent}", f"/api/v1/budgets/agent/{agent}"
    lower = {"limit_micro": 10_000_000, "period": "month"}
    assert (await api.as_(Role.ADMIN).put(place, json=lower)).is_success
    assert (await people.ann.patch(path, json={"budget_limit": 49})).status_code == 403
    assert (await people.ann.patch(path, json={"description": "as before"})).is_success
    assert (await people.ann.patch(path, json={"budget_limit": 9})).is_success
    told = (await people.ann.get(place)).json()
    assert (told["limit_micro"], told["period"]) == (9_000_000, "month")


@pytest.mark.parametrize("kind", ["evaluation", "research"])
async def test_an_owner_does_not_pass_by_a_budget_that_somebody_else_has_lowered(both, kind):
    people = People(both)
    agent = await people.register(type=kind, safety_policy=None)
    path, place = f"/api/v1/agents/{agent}", f"/api/v1/budgets/agent/{agent}"

    async def sets(client, amount):
        return (await client.patch(path, json={"budget_limit": amount})).status_code

    assert [await sets(people.ann, amount) for amount in (60, 40, 50)] == [200] * 3, "her own to set"
    assert (await both.as_(Role.ADMIN).put(place, json={"limit_micro": 10_000_000})).is_success
    assert [await sets(people.ann, amount) for amount in (49, None, 9, 11, 10)] == [403, 403, 200, 403, 200]
    back = await people.ann.post(f"{path}/versions/1/rollback")
    assert (back.status_code, "an operator raises it" in back.json()["detail"]) == (403, True)
    assert await sets(people.op, 20) == 200
    assert [await sets(people.ann, amount) for amount in (5, 20, 21)] == [200, 200, 403]
    assert (await people.ann.get(place)).json()["limit_micro"] == 20_000_000


async def test_the_audit_names_no_version_that_was_not_made(api):
    people = People(api)
    agent = await people.register()
    for changed in ({"description": "x"}, {"description": "x"}, {}):
        assert (await people.ann.patch(f"/api/v1/agents/{agent}", json=changed)).json()["version"] == 2
    acts = [one["subject"] for one in await told(api, agent_id=agent) if one["act"] == "change"]
    assert acts == ["version 2"] * 3


async def test_an_admin_who_owns_an_approved_agent_has_another_one_raise_its_budget(api):
    people, root, eve = People(api), api.as_(Role.ADMIN, name="root"), api.as_(Role.ADMIN, name="eve")
    people.ann = root
    agent = await people.deployed()
    place = f"/api/v1/budgets/agent/{agent}"
    lower, back, more = ({"limit_micro": units * 1_000_000} for units in (10, 50, 60))
    for body in (lower, back):
        assert (await root.put(place, json=body)).is_success
    assert (await root.put(place, json=more)).status_code == 403
    assert (await eve.put(place, json=more)).is_success
    assert (await root.put(place, json=more)).is_success, "it is no more than it was"
    acts = [one for one in await told(api, agent_id=agent) if one["act"] == "set budget"]
    assert [(one["actor"], one["rule"], one["subject"]) for one in acts] == [
        ("root", "", "10.00"),
        ("root", "", "50.00"),
        ("root", "raised budget", "60.00"),
        ("eve", "", "60.00"),
        ("root", "", "60.00"),
    ]


@pytest.mark.parametrize("amount", [60, None])
async def test_nobody_approves_a_budget_that_has_grown_since(api, amount):
    people = People(api)
    agent = await people.register()
    path = f"/api/v1/agents/{agent}/deployments"
    await people.ann.post(path)
    assert (await people.ann.patch(f"/api/v1/agents/{agent}", json={"budget_limit": amount})).is_success
    refused = await people.op.post(f"{path}/1/approve")
    assert (refused.status_code, "spend more by now" in refused.json()["detail"]) == (403, True)
    await people.ann.post(path)
    assert (await people.op.post(f"{path}/2/approve")).status_code == 200


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"budget_limit": None}, "budget_limit"), ({"safety_policy": None}, "safety_policy")],
)
async def test_a_real_deployment_starts_with_all_that_it_needs(api, changed, why):
    people = People(api)
    agent = await people.register(**changed)
    await people.ann.post(f"/api/v1/agents/{agent}/deployments")
    await people.op.post(f"/api/v1/agents/{agent}/deployments/1/approve")
    answer = await people.ann.post(f"/api/v1/agents/{agent}/deployments/1/start")
    assert answer.status_code == 403
    assert why in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["simulation", "evaluation", "research"])
async def test_other_types_do_not_reach_production_and_need_no_approval(api, kind):
    people = People(api)
    agent = await people.register(type=kind)
    path = f"/api/v1/agents/{agent}/deployments"
    assert (await people.ann.post(path, json={"environment": "production"})).status_code == 403
    assert (await people.ann.post(path)).json()["environment"] == "simulation"
    assert (await people.ann.post(f"{path}/1/start")).json()["status"] == "running"
    able = await call(api.state, agent)
    assert able.spends == (kind != "simulation")
    assert (await people.ann.post(f"{path}/1/stop")).json()["status"] == "stopped"
    assert (await people.ann.post(f"{path}/1/stop")).status_code == 200
    assert not await spent(api.state, "", agent, "spent.")
    assert (await people.ann.get(f"/api/v1/agents/{agent}")).json()["status"] == "running"


#: what no table of states has, after what brings the thing so far
REFUSED = [
    (
        "/api/v1/agents/1/status?status=pending",
        "move",
        "pending",
        "The agent is running, and cannot become pending.",
    ),
    (
        "/api/v1/agents/1/deployments/1/approve",
        "approve",
        "deployment 1",
        "Deployment 1 is running, and cannot become approved.",
    ),
    ("/api/v1/jobs/1/resume", "resume", "job 1", "Job 1 is cancelled: only a paused one is resumed."),
    ("/api/v1/jobs/1/pause", "pause", "job 1", "Job 1 is cancelled: it cannot be paused."),
]


async def test_a_move_that_no_table_has_is_in_the_audit(both):
    people = People(both)
    agent = await people.register(type="research")
    assert (await people.ann.post(f"/api/v1/agents/{agent}/deployments")).is_success
    assert (await people.ann.post(f"/api/v1/agents/{agent}/deployments/1/start")).is_success
    job = {"agent_id": agent, "name": "train", "docker_image": None}
    assert (await people.ann.post("/api/v1/jobs", json=job)).is_success
    for _ in range(2):  # the second is allowed, too: it stays as it is
        assert (await people.ann.post("/api/v1/jobs/1/cancel")).is_success
    before = len(await told(both))
    for place, *_, why in REFUSED:
        method = "PATCH" if "status=" in place else "POST"
        answer = await people.op.request(method, place)
        assert (answer.status_code, answer.json()) == (409, {"detail": why})
    kept = await told(both)
    assert [(one["act"], one["subject"]) for one in kept[before - 2 : before]] == [("cancel", "job 1")] * 2
    new = [(one["kind"], one["act"], one["rule"], one["subject"], one["why"]) for one in kept[before:]]
    assert new == [("violation", act, "moves", subject, why) for _, act, subject, why in REFUSED]
    assert {(one["agent_id"], one["actor"]) for one in kept[before:]} == {(agent, "op")}
    assert (await both.as_(Role.USER, name="bob").post("/api/v1/jobs/1/pause")).status_code == 403
    last = (await told(both))[-1]
    assert (last["act"], last["rule"], last["actor"], last["subject"]) == ("pause", "owner", "bob", "job 1")


async def test_terminating_stops_what_runs(api):
    people = People(api)
    agent = await people.deployed()
    await people.ann.delete(f"/api/v1/agents/{agent}")
    [deployment] = (await people.ann.get(f"/api/v1/agents/{agent}/deployments")).json()
    assert (deployment["status"], deployment["why"]) == ("stopped", "its agent was terminated")


async def test_a_version_that_no_column_holds_is_refused(both):
    people = People(both)
    path = f"/api/v1/agents/{await people.register()}/deployments"
    assert (await people.ann.post(path, json={"version": 2**31})).status_code == 422
    assert (await people.ann.post(path, json={"version": 2**31 - 1})).status_code == 404


async def test_what_runs_holds_a_part_of_its_owners_quota_until_it_stops(api):
    people = People(api)
    agent = await people.register(type="research")
    path = f"/api/v1/agents/{agent}/deployments"
    for replicas in (2, 1, 3):
        await people.ann.post(path, json={"replicas": replicas})
    assert (await people.ann.post(f"{path}/1/start")).status_code == 200
    refused = await people.ann.post(f"{path}/2/start")
    assert (refused.status_code, "it may fit later" in refused.json()["detail"]) == (409, True)
    assert "never fit" in (await people.ann.post(f"{path}/3/start")).json()["detail"]
    assert (await people.ann.post(f"{path}/1/start")).status_code == 200
    await people.ann.post(f"{path}/1/stop")
    assert (await people.ann.post(f"{path}/2/start")).status_code == 200
    await people.ann.delete(f"/api/v1/agents/{agent}")
    assert (await quotas.show(api.state.db, "", "ann", api.settings)).held.gpus == 0


async def test_runs_of_an_hour_are_counted_also_when_they_come_at_once(both):
    people, at = People(both), both.state
    agent = await people.register(type="research", limits={"runs_per_hour": 5})
    ends = await asyncio.gather(*(call(at, agent) for _ in range(12)), return_exceptions=True)
    assert sum(isinstance(end, PolicyViolated) for end in ends) == 7
    assert len([end for end in ends if not isinstance(end, Exception)]) == 5


async def test_an_agent_may_be_limited_to_models(api):
    people, at = People(api), api.state
    agent = await people.register(type="research", limits={"models": ["small"]})
    assert (await call(at, agent, model="small")).model is None
    for model in ("large", None):
        with pytest.raises(PolicyViolated, match="model"):
            await call(at, agent, model=model)


async def test_a_refusal_inside_a_group_is_kept_with_what_was_allowed(api):
    people, at = People(api), api.state
    agent = await people.register(type="research", limits={"models": ["small"]})
    async with at.db.writing() as session:
        for model in ("small", "large"):
            try:
                async with session.begin_nested():
                    await invocable(session, agent, ANN, settings=at.settings, model=model)
            except PolicyViolated:
                pass
        await keep_refusals(session)
    assert [(one["act"], one["allowed"]) for one in (await told(api))[1:]] == [
        ("invoke", True),
        ("invoke", False),
    ]


async def test_an_agent_of_another_tenant_is_neither_called_nor_trained(api):
    people, at = People(api), api.state
    agent = await people.register()
    stranger = Caller(name="ann", tenant="elsewhere", role=Role.OPERATOR)
    with pytest.raises(NotFound):
        await call(at, agent, stranger)
    with pytest.raises(NotFound):
        async with trail(at.db) as session:
            await trainable(session, agent, stranger, settings=at.settings)
    async with trail(at.db) as session:
        found = await trainable(session, agent, ANN, settings=at.settings)
    assert found.spec.resource_requirements.resources.gpus == 1
    with pytest.raises(PolicyViolated, match="GAELP_TRAINING_IMAGES"):
        async with trail(at.db) as session:
            await trainable(session, agent, ANN, settings=at.settings, image="evil.example/x")
    with pytest.raises(NotAllowed, match="owner"):
        async with trail(at.db) as session:
            await trainable(session, agent, Caller(name="bob"), settings=at.settings)
