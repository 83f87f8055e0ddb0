"""Batches, schedules and nodes over HTTP: the services behind them have tests of their own."""

import json

import pytest

from gaelp_tasks.celery_app import app
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.batch_work import Ended, Reach
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot
from support.api import api_client

pytestmark = pytest.mark.redis

BATCHES, SCHEDULES, NODES = "/api/v1/batches", "/api/v1/schedules", "/api/v1/nodes"
GOOD = '{"custom_id": "a", "prompt": "Hi"}\n{"custom_id": "b", "prompt": "Ho"}\nnonsense\n'
NIGHTLY = {"name": "night/ly", "cron": "0 2 * * *", "kwargs": {"prompt": "Sum up the day."}}


async def test_a_file_becomes_a_batch_for_which_a_worker_is_called(api):
    client = api.as_(tenant="a")
    made = await client.post(BATCHES, content=GOOD, params={"tier": "background", "name": "f.jsonl"})
    assert made.status_code == 201, made.text
    facts = made.json()
    assert (facts["state"], facts["tier"], facts["file"]) == ("in_progress", "background", "f.jsonl")
    assert (facts["counts"]["total"], facts["counts"]["invalid"]) == (3, 1)
    assert app.redis.llen(app.keys.queue("system")) == 1
    place = f"{BATCHES}/{facts['id']}"
    assert (await client.get(place)).json()["counts"]["open"] == 2
    errors = await client.get(f"{place}/results", params={"errors": True})
    assert json.loads(errors.text)["error"]["code"] == "invalid_line"
    assert [one["id"] for one in (await client.get(BATCHES)).json()] == [facts["id"]]


async def test_under_a_key_there_is_one_batch_unless_it_has_failed(api):
    client, keyed = api.as_(tenant="a"), {"Idempotency-Key": "k"}
    failed = (await client.post(BATCHES, content="", headers=keyed)).json()
    first = (await client.post(BATCHES, content=GOOD, headers=keyed)).json()
    again = (await client.post(BATCHES, content=GOOD, headers=keyed)).json()
    assert (failed["state"], first["state"]) == ("failed", "in_progress")
    assert first["id"] == again["id"]
    assert len((await client.get(BATCHES)).json()) == 1
    other = (await api.as_(tenant="b").post(BATCHES, content=GOOD, headers=keyed)).json()
    assert other["id"] != first["id"]


async def test_results_come_as_lines_in_the_order_of_the_file(api):
    client = api.as_()
    facts = (await client.post(BATCHES, content=GOOD)).json()
    rows = Batches(api.state.db, "")
    now = (await rows.find(facts["id"]))[0].created_at
    await rows.take_over(facts["id"], "me", ticket=0, now=now, died=False)
    result = json.dumps({"text": "Hello", "stop_reason": "stop", "model": "m"})
    ended = [Ended(number, LineOutcome.DONE, result=result) for number in (2, 1)]
    await rows.progress(facts["id"], "me", ended, Reach(), now=now)
    told = await client.get(f"{BATCHES}/{facts['id']}/results")
    assert told.headers["content-type"].startswith("application/jsonl")
    assert [json.loads(line)["custom_id"] for line in told.text.splitlines()] == ["a", "b"]


async def test_a_batch_is_cancelled_and_only_one_that_is_over_removed(api):
    client = api.as_()
    facts = (await client.post(BATCHES, content=GOOD)).json()
    place = f"{BATCHES}/{facts['id']}"
    assert (await client.delete(place)).status_code == 409
    assert (await client.post(f"{place}/cancel")).json()["state"] == "cancelling"
    empty = (await client.post(BATCHES, content="")).json()
    assert empty["state"] == "failed"
    assert (await client.post(f"{BATCHES}/{empty['id']}/cancel")).status_code == 409
    assert (await client.delete(f"{BATCHES}/{empty['id']}")).status_code == 204
    assert (await client.get(f"{BATCHES}/{empty['id']}")).status_code == 404


async def test_a_file_that_is_too_long_or_breaks_off_leaves_nothing(broker, api_sql):
    async with api_client(api_sql, api_max_batch_bytes=2000) as small:
        client = small.as_()

        async def endless():
            while True:
                yield GOOD.encode()

        async def broken():
            yield GOOD.encode()
            raise RuntimeError("the line went dead")

        assert (await client.post(BATCHES, content=endless())).status_code == 413
        with pytest.raises(RuntimeError):
            await client.post(BATCHES, content=broken())
        assert (await client.get(BATCHES)).json() == []


async def test_a_batch_of_another_tenant_is_not_there(api):
    facts = (await api.as_(tenant="a").post(BATCHES, content=GOOD)).json()
    other, admin, place = api.as_(tenant="b"), api.as_(Role.ADMIN), f"{BATCHES}/{facts['id']}"
    for answer in (
        await other.get(place),
        await other.get(f"{place}/results"),
        await other.post(f"{place}/cancel"),
        await other.delete(place),
    ):
        assert answer.status_code == 404
    assert (await other.get(BATCHES)).json() == []
    assert (await other.get(BATCHES, params={"tenant": "a"})).status_code == 403
    assert len((await admin.get(BATCHES, params={"tenant": "a"})).json()) == 1


async def test_a_schedule_is_added_shown_edited_paused_run_and_removed(api):
    client = api.as_(tenant="a")
    place = f"{SCHEDULES}/night%2Fly"
    made = await client.post(SCHEDULES, json=NIGHTLY)
    assert made.status_code == 201, made.text
    assert len(made.json()["next"]) == 5
    assert (await client.post(SCHEDULES, json=NIGHTLY)).status_code == 422
    edited = (await client.patch(place, json={"cron": None, "interval_s": 60, "tier": "background"})).json()
    assert (edited["interval_s"], edited["cron"], edited["kwargs"]) == (60, None, NIGHTLY["kwargs"])
    assert (await client.post(f"{place}/pause")).json()["paused"] is True
    run = (await client.post(f"{place}/run")).json()
    assert (await client.get(place)).json()["last_task"] == run["id"]
    assert (await client.post(f"{place}/resume")).json()["paused"] is False
    assert [one["name"] for one in (await client.get(SCHEDULES)).json()] == ["night/ly"]
    assert (await api.as_(tenant="b").get(place)).status_code == 404
    assert (await client.delete(place)).status_code == 204
    assert (await client.delete(place)).status_code == 404


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"cron": "nonsense"}, 422),
        ({"kwargs": {"prompt": "a\0b"}}, 422),
        ({"kwargs": {"prompt": "Hi", "agent": "nobody"}}, 422),
        ({"kwargs": {"prompt": "Hi", "tenant": "b"}}, 422),
        ({"task": "gaelp.maintenance.prune_history", "kwargs": {}}, 403),
        ({"queue": "system"}, 403),
    ],
)
async def test_a_schedule_that_may_not_be_is_refused(api, change, status):
    answer = await api.as_().post(SCHEDULES, json=NIGHTLY | change)
    assert answer.status_code == status, answer.text


async def test_an_admin_may_schedule_other_tasks(api):
    other = NIGHTLY | {"task": "shop.reindex", "kwargs": {}, "queue": "celery"}
    assert (await api.as_(Role.ADMIN).post(SCHEDULES, json=other)).status_code == 201


@pytest.fixture
def node():
    memory = MemorySnapshot(total_bytes=8, free_bytes=4, source="host")
    where = {"worker": "w@h", "url": "http://n:1", "pid": 1, "healthy": True, "slots": 2}
    snapshot = NodeSnapshot(**where, memory=memory, running=("x",), started_at=1.0, seen_at=1.0)
    app.redis.set(app.keys.node("w@h", "http://n:1"), snapshot.model_dump_json())


async def test_operators_see_nodes_and_take_them_out_of_service(api, node):
    client = api.as_(Role.OPERATOR)
    [seen] = (await client.get(NODES)).json()
    assert (seen["worker"], seen["running"], seen["cordoned"]) == ("w@h", ["x"], False)
    assert (await client.post(f"{NODES}/w@h/cordon")).json()["running"] == 1
    assert app.redis.get(app.keys.cordon("w@h")) == "cordon"
    drained = await client.post(f"{NODES}/w@h/drain", params={"hand_back": True})
    assert drained.status_code == 202
    assert app.redis.get(app.keys.cordon("w@h")) == "hand-back"
    assert (await client.get(NODES)).json()[0]["cordoned"] is True
    assert (await client.post(f"{NODES}/w@h/resume")).json()["state"] == "open"
    assert not app.redis.exists(app.keys.cordon("w@h"))
    assert (await client.post(f"{NODES}/nobody/cordon")).status_code == 404


async def test_users_see_no_nodes(api, node):
    for ask in (api.as_().get(NODES), api.as_().post(f"{NODES}/w@h/cordon")):
        assert (await ask).status_code == 403


async def test_who_has_a_budget_does_not_pass_it_by_with_schedules(api):
    ann, root = api.as_(name="ann", tenant="a"), api.as_(Role.ADMIN)
    assert (await ann.post(SCHEDULES, json=NIGHTLY)).status_code == 201
    assert (await ann.post(f"{SCHEDULES}/night/ly/pause")).status_code == 200
    given = await root.put("/api/v1/budgets/user/ann?tenant=a", json={"limit_micro": 10**9})
    assert given.status_code == 200
    refused = [
        await ann.post(SCHEDULES, json={**NIGHTLY, "name": "other"}),
        await ann.patch(f"{SCHEDULES}/night/ly", json={"cron": "* * * * *"}),
        *[await ann.post(f"{SCHEDULES}/night/ly/{verb}") for verb in ("run", "resume")],
    ]
    assert [answer.status_code for answer in refused] == [403] * 4
    assert "nobody" not in refused[0].text
    assert (
        await api.as_(name="bob", tenant="a").post(SCHEDULES, json={**NIGHTLY, "name": "b"})
    ).status_code == 201
