"""Agents over HTTP: registered as the seed prints it, changed by versions, with secrets nobody is told."""

import base64
import logging

import pytest
from sqlalchemy import text

from gaelp_tasks.models.caller import Role
from gaelp_tasks.services.agent_secrets import opened
from support.api import api_client

SEED = {
    "name": "campaign-optimizer-v2",
    "type": "real_deployment",
    "docker_image": "gcr.io/gaelp/optimizer:v2.0",
    "resource_requirements": {"cpu": "4", "memory": "8Gi", "gpu": "1"},
    "budget_limit": 5000.0,
}
HUSH = "hush-hush-9f3a"
KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in range(3)]


@pytest.fixture
async def sealing(broker, api_sql):
    async with api_client(api_sql, secret_keys=KEYS[0]) as made:
        yield made


async def registered(client, **changed):
    answer = await client.post("/api/v1/agents", json=SEED | changed)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def decisions(api, **asked):
    answer = await api.as_(Role.OPERATOR).get("/api/v1/audit", params=asked)
    return [(one["act"], one["kind"], one["rule"], one["actor"]) for one in answer.json()]


async def test_the_seeds_agent_is_registered_as_it_is_printed(api):
    user = api.as_(Role.USER)
    told = await registered(user)
    assert {name: told[name] for name in SEED} == SEED
    assert (told["id"], told["status"], told["version"], told["owner"]) == (1, "pending", 1, "user")
    assert (await user.get("/api/v1/agents/1")).json() == told
    assert (await user.get("/api/v1/agents")).json() == [told]
    assert (await api.as_(Role.USER).get("/api/v1/status")).json()["agent_counts"] == {
        "total": 1,
        "active": 1,
    }
    assert await decisions(api) == [("register", "decision", "", "user")]


async def test_lists_are_filtered_and_cut(api):
    user = api.as_(Role.USER)
    for number in range(3):
        await registered(user, name=f"a{number}", type="research" if number else "simulation")
    asked = {"type": "research", "limit": 1, "skip": 1}
    assert [one["name"] for one in (await user.get("/api/v1/agents", params=asked)).json()] == ["a2"]
    assert [one["name"] for one in (await user.get("/api/v1/agents?name=a1")).json()] == ["a1"]
    assert (await user.get("/api/v1/agents?owner=nobody")).json() == []
    assert (await user.get("/api/v1/agents?name=a%00")).status_code == 422


async def test_a_change_is_a_new_version_and_a_rollback_another_one(api):
    user = api.as_(Role.USER)
    await registered(user)
    changed = await user.patch("/api/v1/agents/1", json={"description": "better", "budget_limit": 10})
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    same = await user.patch("/api/v1/agents/1", json={"description": "better"})
    assert same.json()["version"] == 2
    again = (await user.post("/api/v1/agents/1/versions/1/rollback")).json()
    assert (again["version"], again["description"], again["budget_limit"]) == (3, "", 5000.0)
    versions = (await user.get("/api/v1/agents/1/versions")).json()
    told = [(one["version"], one["spec"]["description"], one["rolled_back_to"]) for one in versions]
    assert told == [(3, "", 1), (2, "better", None), (1, "", None)]
    assert (await user.post("/api/v1/agents/1/versions/9/rollback")).status_code == 404


async def test_the_type_of_an_agent_stays(api):
    user = api.as_(Role.USER)
    await registered(user, type="simulation")
    assert (await user.patch("/api/v1/agents/1", json={"type": "real_deployment"})).status_code == 422
    assert (await user.patch("/api/v1/agents/1", json={"type": "simulation"})).json()["version"] == 1


async def test_states_move_as_their_table_says(api):
    user = api.as_(Role.USER)
    await registered(user)

    async def move(status):
        answer = await user.patch(f"/api/v1/agents/1/status?status={status}")
        return answer.status_code, answer.json().get("status")

    assert await move("running") == (200, "running")
    assert await move("running") == (200, "running")
    assert await move("pending") == (409, None)
    assert await move("asleep") == (422, None)
    assert await move("paused") == (200, "paused")
    assert await move("terminated") == (200, "terminated")
    assert await move("running") == (409, None)
    assert (await user.get("/api/v1/agents")).json() == []
    assert len((await user.get("/api/v1/agents?status=terminated")).json()) == 1


async def test_an_ended_agent_keeps_its_versions_and_loses_its_secrets(sealing):
    user = sealing.as_(Role.USER)
    await registered(user, secrets={"TOKEN": HUSH})
    ended = await user.delete("/api/v1/agents/1")
    assert (ended.status_code, ended.json()["status"], ended.json()["secrets"]) == (200, "terminated", [])
    assert (await user.delete("/api/v1/agents/1")).status_code == 200
    assert (await user.patch("/api/v1/agents/1", json={"description": "x"})).status_code == 409
    assert len((await user.get("/api/v1/agents/1/versions")).json()) == 1


async def test_another_user_sees_an_agent_and_does_not_change_it_but_an_operator_may(api):
    await registered(api.as_(Role.USER))
    other = api.as_(Role.USER, name="other")
    assert (await other.get("/api/v1/agents/1")).status_code == 200
    refused = [
        await other.patch("/api/v1/agents/1", json={"description": "mine"}),
        await other.patch("/api/v1/agents/1/status?status=running"),
        await other.delete("/api/v1/agents/1"),
        await other.put("/api/v1/agents/1/secrets", json={"A": "b"}),
        await other.post("/api/v1/agents/1/metrics", json={"x": 1}),
        await other.post("/api/v1/agents/1/deployments"),
    ]
    assert {answer.status_code for answer in refused} == {403}
    assert [one[1:] for one in (await decisions(api))[1:]] == [("violation", "owner", "other")] * 5
    assert (await api.as_(Role.OPERATOR).patch("/api/v1/agents/1/status?status=paused")).status_code == 200


async def test_another_tenant_finds_nothing(api):
    await registered(api.as_(Role.USER, tenant="one"))
    stranger = api.as_(Role.OPERATOR, tenant="two")
    answers = [
        await stranger.get("/api/v1/agents/1"),
        await stranger.patch("/api/v1/agents/1", json={}),
        await stranger.delete("/api/v1/agents/1"),
        await stranger.patch("/api/v1/agents/1/status?status=running"),
        await stranger.get("/api/v1/agents/1/versions"),
        await stranger.get("/api/v1/agents/1/secrets"),
        await stranger.get("/api/v1/agents/1/metrics"),
        await stranger.post("/api/v1/agents/1/metrics", json={"x": 1}),
        await stranger.get("/api/v1/agents/1/deployments"),
        await stranger.post("/api/v1/agents/1/deployments"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert (await stranger.get("/api/v1/agents")).json() == []
    assert (await stranger.get("/api/v1/audit")).json() == []
    assert (await stranger.get("/api/v1/audit/export")).text == ""
    assert len((await api.as_(Role.ADMIN).get("/api/v1/agents")).json()) == 1


async def test_an_image_that_is_not_allowed_is_refused_and_the_refusal_is_kept(api):
    user = api.as_(Role.USER)
    answer = await user.post("/api/v1/agents", json=SEED | {"docker_image": "evil.example/x:1"})
    assert answer.status_code == 403
    assert (await user.get("/api/v1/agents")).json() == []
    assert await decisions(api) == [("register", "violation", "image", "user")]


async def test_a_secret_is_told_to_nobody_and_stands_nowhere(sealing, caplog):
    caplog.set_level(logging.DEBUG)
    user, admin = sealing.as_(Role.USER), sealing.as_(Role.ADMIN)
    told = await registered(user, secrets={"TOKEN": HUSH})
    assert told["secrets"] == ["TOKEN"]
    assert (await user.put("/api/v1/agents/1/secrets", json={"OTHER": HUSH})).json() == ["OTHER", "TOKEN"]
    for path in ("agents/1", "agents", "agents/1/versions", "agents/1/secrets", "audit", "audit/export"):
        answer = await admin.get(f"/api/v1/{path}")
        assert answer.status_code == 200
        assert HUSH not in answer.text
    async with sealing.state.db.reading() as session:
        assert await opened(session, sealing.settings, "", 1) == {"OTHER": HUSH, "TOKEN": HUSH}
        for table in ("agents", "agent_versions", "agent_secrets", "decisions"):
            rows = (await session.execute(text(f"SELECT * FROM {table}"))).all()  # noqa: S608  our own names
            assert rows
            assert HUSH not in str(rows)
    wrong = await user.put("/api/v1/agents/1/secrets", json={"1": HUSH})
    assert wrong.status_code == 422
    assert HUSH not in wrong.text + caplog.text
    assert (await user.delete("/api/v1/agents/1/secrets/OTHER")).json() == ["TOKEN"]
    assert (await user.delete("/api/v1/agents/1/secrets/OTHER")).status_code == 404


async def test_keys_are_changed_one_after_the_other(broker, api_sql):
    async with api_client(api_sql, secret_keys=KEYS[0]) as first:
        await registered(first.as_(Role.USER), secrets={"TOKEN": HUSH})
    async with api_client(api_sql, secret_keys=f"{KEYS[1]},{KEYS[0]}") as both:
        admin = both.as_(Role.ADMIN)
        assert (await both.as_(Role.USER).post("/api/v1/secrets/reseal")).status_code == 403
        assert (await admin.post("/api/v1/secrets/reseal")).json() == {"resealed": 1}
        assert (await admin.post("/api/v1/secrets/reseal")).json() == {"resealed": 0}
    async with api_client(api_sql, secret_keys=KEYS[1]) as second, second.state.db.reading() as session:
        assert await opened(session, second.settings, "", 1) == {"TOKEN": HUSH}


async def test_without_a_key_no_secret_is_taken(api):
    user = api.as_(Role.USER)
    answer = await user.post("/api/v1/agents", json=SEED | {"secrets": {"TOKEN": HUSH}})
    assert answer.status_code == 409
    assert "GAELP_SECRET_KEYS" in answer.json()["detail"]
    assert (await user.get("/api/v1/agents")).json() == []


async def test_metrics_are_kept_bounded_and_told_to_who_watches(broker, api_sql, monkeypatch):
    monkeypatch.setattr("gaelp_tasks.services.metrics.LOOKS_AFTER", 1)
    async with api_client(api_sql, agent_metrics_keep=3) as api:
        user, at = api.as_(Role.USER), api.state
        await registered(user)
        channel = at.redis.pubsub()
        await channel.subscribe(at.app.keys.told(1))
        for step in range(5):
            body = {"step": step, "reward": 0.5, "resources": {"cpu": 1.5, "memory_bytes": 1e9}}
            answer = await user.post("/api/v1/agents/1/metrics", json=body)
            assert answer.status_code == 201
        newest = (await user.get("/api/v1/agents/1/metrics")).json()
        assert [one["step"] for one in newest] == [4, 3, 2]
        assert newest[0]["values"] == {"reward": 0.5}
        assert (await user.get("/api/v1/agents/1/metrics?skip=1&limit=1")).json() == newest[1:2]
        assert (await user.get("/api/v1/agents/1/metrics?job_id=7")).json() == []
        assert (await user.post("/api/v1/agents/1/metrics", json={"values": {}})).status_code == 422
        assert (await user.post("/api/v1/agents/2/metrics", json={"x": 1})).status_code == 404
        await channel.get_message(timeout=5)  # that we listen
        heard = await channel.get_message(timeout=5)
        assert '"event":"metrics"' in str(heard["data"])
        await channel.aclose()
