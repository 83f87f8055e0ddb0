"""The system at a glance, over HTTP."""

import asyncio

from gaelp_tasks.celery_app import app
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot
from gaelp_tasks.survey import Survey


async def test_health_needs_no_token_and_tells_of_sql_and_redis(api):
    answer = await api.with_headers().get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "database": "ok", "redis": "ok"})


async def test_status_has_the_keys_of_the_contract(api):
    answer = await api.as_(Role.USER).get("/api/v1/status")
    assert answer.status_code == 200
    told = answer.json()
    assert told.keys() == {"job_counts", "agent_counts", "cluster_resources", "scheduler_status"}
    assert told["job_counts"].keys() == {"queued", "running"}
    assert told["agent_counts"].keys() == {"total", "active"}
    assert told["cluster_resources"]["slots"] == {"total": 0, "busy": 0}
    assert told["scheduler_status"]["status"] == "stopped"


async def test_status_tells_of_nodes_that_are_announced(api):
    announced = NodeSnapshot(
        worker="gaelp@here",
        pid=1,
        url="http://node",
        healthy=True,
        slots=4,
        running=("a",),
        memory=MemorySnapshot(total_bytes=8, free_bytes=4, source="host"),
        started_at=1.0,
        seen_at=1.0,
    )
    app.redis.set(app.keys.node(announced.worker, announced.url), announced.model_dump_json(), ex=30)
    app.redis.set(app.keys.beat, "here:1:x|1", ex=30)
    told = (await api.as_().get("/api/v1/status")).json()
    assert told["cluster_resources"]["slots"] == {"total": 4, "busy": 1}
    assert told["cluster_resources"]["nodes"] == {"total": 1, "healthy": 1}
    assert told["scheduler_status"]["status"] == "running"


async def test_however_many_ask_after_health_sql_is_asked_once_at_a_time(api, monkeypatch):
    asked, go_on = [], asyncio.Event()

    async def slow(_):
        asked.append(1)
        await go_on.wait()

    monkeypatch.setattr(type(api.state.db), "ping", slow)
    client = api.with_headers()
    waiting = [asyncio.create_task(client.get("/health")) for _ in range(20)]
    while not asked:
        await asyncio.sleep(0)
    go_on.set()
    assert {(await one).status_code for one in waiting} == {200}
    assert len(asked) < 20


async def test_status_needs_a_token(api):
    answer = await api.with_headers().get("/api/v1/status")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert isinstance(answer.json()["detail"], str)


async def test_what_is_away_is_told_without_where_it_is(api, monkeypatch, caplog):
    def away(_):
        raise BrokerUnavailable("Redis at redis://inside:6379/0 does not serve us.")

    monkeypatch.setattr(Survey, "take", away)
    told = await api.as_().get("/api/v1/status")
    assert told.status_code == 503
    assert int(told.headers["Retry-After"]) > 0
    assert "inside" not in told.text
    assert "inside" in caplog.text
