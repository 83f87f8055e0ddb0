"""The system at a glance, over HTTP."""

from gaelp_tasks.models.caller import Role


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


async def test_status_needs_a_token(api):
    answer = await api.with_headers().get("/api/v1/status")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert isinstance(answer.json()["detail"], str)
