"""Four eyes: what runs was looked at by somebody who has made none of it, and its secrets with it."""

import asyncio
import base64
import json

import pytest

from gaelp_tasks.models.caller import Role
from gaelp_tasks.services import quotas
from support.api import api_client

KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in range(2)]
AGENT = {
    "name": "shop",
    "type": "real_deployment",
    "resource_requirements": {"cpu": "4", "gpu": "1"},
    "budget_limit": 50.0,
    "safety_policy": {"output_tokens": 100},
    "environment": {"REGION": "north"},
    "secrets": {"TOKEN": "first"},
}
PATH = "/api/v1/agents/1"
ONE = f"{PATH}/deployments/1"
WHY = "its secrets were changed after its approval"


class People:
    """Ann owns the agent, the others look after the tenant."""

    def __init__(self, api):
        self.ann = api.as_(Role.USER, name="ann")
        self.op, self.eve, self.joe = [api.as_(Role.OPERATOR, name=name) for name in ("op", "eve", "joe")]

    async def deployed(self, *verbs, **changed):
        """Registered, and its first deployment brought so far."""
        assert (await self.ann.post("/api/v1/agents", json=AGENT | changed)).status_code == 201
        await self.ann.post(f"{PATH}/deployments")
        for verb in verbs:
            await does(self.op if verb == "approve" else self.ann, verb)


async def does(client, verb, status=200, number=1):
    answer = await client.post(f"{PATH}/deployments/{number}/{verb}")
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
async def both(broker, sql_url):
    """The API on SQLite and on PostgreSQL."""
    async with api_client(sql_url, secret_keys=KEYS[0]) as made:
        yield made


@pytest.fixture
async def sealing(broker, api_sql):
    async with api_client(api_sql, secret_keys=KEYS[0]) as made:
        yield made


#: what is done to secrets, and how far the deployment was brought by then
CHANGES = {
    "set anew": ("PUT", "/secrets", {"TOKEN": "second"}, ["approve"]),
    "set the same": ("PUT", "/secrets", {"TOKEN": "first"}, ["approve", "start"]),
    "one more": ("PUT", "/secrets", {"OTHER": "x"}, ["approve", "start", "stop"]),
    "taken away": ("DELETE", "/secrets/TOKEN", None, ["approve", "start"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_of_secrets_takes_the_approval_back(sealing, change):
    people = People(sealing)
    method, rest, body, verbs = change
    await people.deployed(*verbs)
    assert (await people.ann.request(method, PATH + rest, json=body)).status_code == 200
    found = (await people.ann.get(ONE)).json()
    assert (found["status"], found["approved_by"], found["approved_at"]) == ("pending", None, None)
    assert found["why"] == WHY
    assert "approval" in (await does(people.ann, "start", 403))["detail"]
    assert (await quotas.show(sealing.state.db, "", "ann", sealing.settings)).held.gpus == 0
    assert (await does(people.op, "approve"))["approved_by"] == "op"
    assert (await does(people.ann, "start"))["status"] == "running"


async def test_it_is_in_the_audit_and_told_to_who_watches_on_both_databases(both):
    people, at = People(both), both.state
    await people.deployed("approve", "start")
    channel = at.redis.pubsub()
    await channel.subscribe(at.app.keys.told(1))
    await channel.get_message(timeout=5)
    await people.eve.put(f"{PATH}/secrets", json={"TOKEN": "second"})
    event = json.loads((await channel.get_message(timeout=5))["data"])
    await channel.aclose()
    assert event["data"] == {
        "deployment_id": 1,
        "status": "pending",
        "was": "running",
        "by": "eve",
        "why": WHY,
    }
    kept = (await people.op.get("/api/v1/audit", params={"agent_id": 1})).json()[-2:]
    assert [(one["act"], one["kind"], one["actor"], one["role"], one["subject"]) for one in kept] == [
        ("set secret", "decision", "eve", "operator", "TOKEN"),
        ("withdraw approval", "decision", "eve", "operator", "deployment 1"),
    ]
    assert kept[1]["why"] == WHY
    for who in (people.eve, people.ann):  # hers is one of the secrets; and ann is no operator
        await does(who, "approve", 403)
    await does(people.op, "approve")
    assert (await does(people.ann, "start"))["status"] == "running"


async def test_nothing_starts_on_an_approval_that_was_taken_back_whatever_comes_at_once(both):
    people = People(both)
    await people.deployed("approve")
    secret = people.ann.put(f"{PATH}/secrets", json={"TOKEN": "second"})
    starts = [people.ann.post(f"{ONE}/start") for _ in range(4)]
    answers = await asyncio.gather(*starts[:2], secret, *starts[2:])
    assert answers[2].status_code == 200
    assert {answer.status_code for answer in answers} <= {200, 403}
    assert (await people.ann.get(ONE)).json()["status"] == "pending"
    await does(people.ann, "start", 403)


async def test_whoever_was_refused_has_changed_nothing(sealing):
    people = People(sealing)
    await people.deployed("approve", "start")
    bob = sealing.as_(Role.USER, name="bob")
    assert (await bob.put(f"{PATH}/secrets", json={"TOKEN": "x"})).status_code == 403
    assert (await people.ann.put(f"{PATH}/secrets", json={"REGION": "x"})).status_code == 409
    assert (await people.ann.delete(f"{PATH}/secrets/NOBODY")).status_code == 404
    assert (await people.ann.put(f"{PATH}/secrets", json={})).status_code == 200
    assert (await people.ann.get(ONE)).json()["status"] == "running"


async def test_another_key_for_the_same_secrets_takes_nothing_back(broker, api_sql):
    async with api_client(api_sql, secret_keys=KEYS[0]) as first:
        await People(first).deployed("approve", "start")
    async with api_client(api_sql, secret_keys=f"{KEYS[1]},{KEYS[0]}") as second:
        people = People(second)
        assert (await second.as_(Role.ADMIN).post("/api/v1/secrets/reseal")).json() == {"resealed": 1}
        assert (await people.ann.get(ONE)).json()["status"] == "running"


async def test_what_needs_no_approval_runs_on(sealing):
    people = People(sealing)
    await people.deployed("start", type="research")
    await people.ann.put(f"{PATH}/secrets", json={"TOKEN": "second"})
    assert (await people.ann.get(ONE)).json()["status"] == "running"


async def test_the_environment_of_what_was_approved_stays_and_another_one_needs_its_own_approval(sealing):
    people = People(sealing)
    await people.deployed("approve", "start")
    changed = await people.ann.patch(PATH, json={"environment": {"REGION": "south"}})
    assert changed.json()["version"] == 2
    first = (await people.ann.get(ONE)).json()
    assert (first["status"], first["version"]) == ("running", 1)
    versions = (await people.ann.get(f"{PATH}/versions")).json()
    assert [one["spec"]["environment"]["REGION"] for one in versions] == ["south", "north"]
    await people.ann.post(f"{PATH}/deployments")
    await does(people.ann, "start", 403, number=2)
    await does(people.op, "approve", number=2)


async def test_who_has_set_a_secret_does_not_approve_until_somebody_else_has_set_it_anew(sealing):
    people = People(sealing)
    await people.deployed()
    await people.op.put(f"{PATH}/secrets", json={"OTHER": "x"})
    await people.ann.put(f"{PATH}/secrets", json={"TOKEN": "second"})
    assert "of his own making" in (await does(people.op, "approve", 403))["detail"]
    await people.ann.put(f"{PATH}/secrets", json={"OTHER": "y"})
    await does(people.op, "approve")


async def test_who_has_taken_a_secret_away_does_not_approve_that(sealing):
    people = People(sealing)
    await people.deployed("approve")
    await people.op.delete(f"{PATH}/secrets/TOKEN")
    await does(people.op, "approve", 403)
    await does(people.eve, "approve")


async def test_who_has_made_an_earlier_version_that_nobody_else_looked_at_does_not_approve(sealing):
    people = People(sealing)
    await people.deployed("approve")  # version 1, by op
    await people.eve.patch(PATH, json={"config": {"system_prompt": "Be reckless."}})
    await people.ann.patch(PATH, json={"description": "a word"})
    await people.ann.post(f"{PATH}/deployments", json={"version": 3})
    await does(people.eve, "approve", 403, number=2)
    await does(people.op, "approve", number=2)
    await people.ann.patch(PATH, json={"description": "two words"})
    await people.ann.post(f"{PATH}/deployments")
    await does(people.eve, "approve", number=3)  # op has looked at what was hers


async def test_a_rollback_brings_back_whose_work_that_version_was(sealing):
    people = People(sealing)
    await people.deployed()
    await people.eve.patch(PATH, json={"description": "by eve"})
    assert (await people.ann.post(f"{PATH}/versions/1/rollback")).json()["version"] == 3
    assert (await people.joe.post(f"{PATH}/versions/2/rollback")).json()["version"] == 4
    for version, refused, able in ((3, people.ann, people.eve), (4, people.eve, people.op)):
        number = (await people.ann.post(f"{PATH}/deployments", json={"version": version})).json()["id"]
        await does(refused, "approve", 403, number=number)
        if version == 4:
            await does(people.joe, "approve", 403, number=number)
        await does(able, "approve", number=number)


async def test_an_approval_that_was_taken_back_still_bounds_the_budget(sealing):
    people = People(sealing)
    await people.deployed("approve")
    await people.ann.put(f"{PATH}/secrets", json={"TOKEN": "second"})
    assert (await people.ann.patch(PATH, json={"budget_limit": 60})).status_code == 403
