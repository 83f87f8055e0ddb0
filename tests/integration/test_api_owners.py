"""Whose it is: a user stops, changes and deletes what is his own, operators and admins all that they see."""

import json
from datetime import UTC, datetime
from itertools import product

import pytest

from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.schedules import Schedules
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Schedule
from support.api import Api

pytestmark = pytest.mark.redis

LINE = json.dumps({"prompt": "Hi"})
NIGHTLY = {"name": "nightly", "cron": "0 2 * * *", "kwargs": {"prompt": "Sum up the day."}}
AGENT = {"name": "bot", "type": "simulation"}

#: noun -> what makes one, its body, and the key of its answer that stands in its place
NOUNS = {
    "invocation": ("/api/v1/invocations", {"prompt": "Hi"}, "id"),
    "batch": ("/api/v1/batches", LINE, "id"),
    "schedule": ("/api/v1/schedules", NIGHTLY, "name"),
    "agent": ("/api/v1/agents", AGENT, "id"),
    "job": ("/api/v1/jobs", {"agent_id": "{agent}", "name": "train"}, "id"),
    "deployment": ("/api/v1/agents/{agent}/deployments", {}, "id"),
}
#: what changes one: method, rest of its place, body, and how its owner is answered
CHANGES = [
    ("invocation", "POST", "/cancel", None, 202),
    ("batch", "POST", "/cancel", None, 202),
    ("batch", "DELETE", "", None, 409),  # it is not over
    ("schedule", "PATCH", "", {"cron": "0 3 * * *"}, 200),
    ("schedule", "POST", "/pause", None, 200),
    ("schedule", "POST", "/resume", None, 200),
    ("schedule", "POST", "/run", None, 202),
    ("schedule", "DELETE", "", None, 204),
    ("agent", "PATCH", "", {"description": "x"}, 200),
    ("agent", "PATCH", "/status?status=paused", None, 200),
    ("agent", "POST", "/versions/1/rollback", None, 200),
    ("agent", "POST", "/deployments", {}, 201),
    ("agent", "POST", "/metrics", {"reward": 1.0}, 201),
    ("agent", "DELETE", "", None, 200),
    ("job", "POST", "/pause", None, 200),
    ("job", "POST", "/resume", None, 409),  # it was not paused
    ("job", "POST", "/cancel", None, 200),
    ("deployment", "POST", "/start", None, 200),
    ("deployment", "POST", "/stop", None, 200),
]
#: who asks -> his role, his tenant, and whether it is as if it were his own
ASKERS = {
    "ann": (Role.USER, "a", True),
    "colleague": (Role.USER, "a", False),
    "operator": (Role.OPERATOR, "a", True),
    "admin": (Role.ADMIN, "", True),
}


async def made(api: Api, noun: str) -> str:
    """One of ann's; its place."""
    ann, agent = api.as_(name="ann", tenant="a"), None
    place, body, key = NOUNS[noun]
    if noun in {"job", "deployment"}:
        agent = (await ann.post("/api/v1/agents", json=AGENT)).json()["id"]
        place = place.format(agent=agent)
        body = {name: agent if value == "{agent}" else value for name, value in body.items()}
    given = {"content": body} if isinstance(body, str) else {"json": body}
    answer = await ann.post(place, **given)
    assert answer.is_success, answer.text
    return f"{place}/{answer.json()[key]}"


async def ask(api: Api, who: str, method: str, place: str, body: object):
    role, tenant, _ = ASKERS[who]
    where = {"tenant": "a"} if who == "admin" and place.startswith(("/api/v1/b", "/api/v1/s")) else {}
    client = api.as_(role, tenant=tenant, name=who)
    return await client.request(method, place, json=body, params=where or None)


@pytest.mark.parametrize("noun", NOUNS)
async def test_a_colleague_changes_nothing_and_everybody_above_does(api, noun):
    own = [change for _, *change in filter(lambda row: row[0] == noun, CHANGES)]
    for (method, rest, body, status), (who, (_, _, may)) in product(own, ASKERS.items()):
        if who == "admin" and (method, rest) != (own[0][0], own[0][1]):
            continue  # one of each noun will do: what operators may, admins may
        await ask(api, "ann", "DELETE", "/api/v1/schedules/nightly", None)  # its name is free again
        place = await made(api, noun)
        answer = await ask(api, who, method, place + rest, body)
        assert answer.status_code == (status if may else 403), f"{who}: {method} {rest}: {answer.text}"
        if not may:
            assert answer.json() == {"detail": "Only its owner ann or an operator may do this."}
            assert (await ask(api, who, "GET", place, None)).status_code == 200


async def test_a_refused_change_leaves_the_thing_as_it_was(api):
    invocation, batch, schedule = [await made(api, noun) for noun in ("invocation", "batch", "schedule")]
    for place in (f"{invocation}/cancel", f"{batch}/cancel", f"{schedule}/pause", f"{schedule}/run"):
        assert (await ask(api, "colleague", "POST", place, None)).status_code == 403
    told = [
        (await ask(api, "colleague", "GET", place, None)).json() for place in (invocation, batch, schedule)
    ]
    assert [one["owner"] for one in told] == ["ann"] * 3
    assert told[0]["cancelled"] is False
    assert told[1]["state"] == "in_progress"
    assert (told[2]["paused"], told[2]["last_task"]) == (False, None)


async def test_what_nobody_is_known_to_have_made_is_changed_by_operators_alone(api):
    now = (
        await Batches(api.state.db, "a").create(tier=Tier.BATCH, name="", now=datetime.now(UTC))
    ).created_at
    [batch] = await Batches(api.state.db, "a").newest(1)
    await Schedules(api.state.db, "a").add(Schedule.parse(NIGHTLY), now)
    for place in (f"/api/v1/batches/{batch.id}/cancel", "/api/v1/schedules/nightly/pause"):
        refused = await ask(api, "ann", "POST", place, None)
        assert refused.status_code == 403
        assert refused.json()["detail"] == "Only its owner, who is not known, or an operator may do this."
        assert (await ask(api, "operator", "POST", place, None)).is_success


async def test_a_schedule_stays_its_owners_whoever_has_edited_it(api):
    place = await made(api, "schedule")
    assert (await ask(api, "operator", "PATCH", place, {"cron": "0 4 * * *"})).json()["owner"] == "ann"
    assert (await ask(api, "ann", "DELETE", place, None)).status_code == 204


async def test_a_key_of_a_colleagues_batch_neither_shows_nor_replaces_it(api):
    keyed = {"Idempotency-Key": "k"}
    failed = await api.as_(name="ann", tenant="a").post("/api/v1/batches", content="", headers=keyed)
    assert failed.json()["state"] == "failed"
    answer = await api.as_(name="colleague", tenant="a").post("/api/v1/batches", content=LINE, headers=keyed)
    assert answer.status_code == 409
    assert answer.json()["detail"] == "This Idempotency-Key stands for a batch of ann: take another key."
    assert (await ask(api, "ann", "GET", f"/api/v1/batches/{failed.json()['id']}", None)).status_code == 200
