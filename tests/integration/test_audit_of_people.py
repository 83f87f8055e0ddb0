"""Who changes users, keys, quotas and budgets stands in the audit, on both databases; no secret does."""

from datetime import UTC, datetime

import pytest

from gaelp_tasks.db.users import Users
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.user import NewUser
from support.api import api_client

pytestmark = [pytest.mark.redis]


@pytest.fixture
async def api(broker, sql_url):
    async with api_client(sql_url) as made:
        yield made


async def audited(api, **asked):
    found = (await api.as_(Role.ADMIN).get("/api/v1/audit", params=asked)).json()
    return [(one["actor"], one["role"], one["act"], one["subject"], one["tenant"]) for one in found]


async def test_users_and_keys(api):
    root = api.as_(Role.ADMIN, name="root")
    made = (await root.post("/api/v1/users", json={"name": "ann", "tenant": "acme"})).json()
    place = f"/api/v1/users/{made['id']}"
    assert (await root.patch(place, json={"role": "operator", "disabled": False})).is_success
    ann = api.as_(name="ann", tenant="acme")
    key = (await ann.post("/api/v1/keys", json={"name": "ci", "role": "user"})).json()
    ann = api.with_headers(Authorization=f"Bearer {key['key']}")
    assert (await ann.delete(f"/api/v1/keys/{key['id']}")).status_code == 204
    assert (await root.patch(place, json={"tenant": "other"})).is_success
    assert (await root.delete(place)).status_code == 204
    await Users(api.state.db, None).add(NewUser(name="bob"), datetime.now(UTC))
    begins = key["prefix"]
    told = await audited(api)
    assert told == [
        ("root", "admin", "add user", "user ann: role=user", "acme"),
        ("root", "admin", "change user", "user ann: role=operator, disabled=False", "acme"),
        ("ann", "user", "make key", f"key {begins} of ann: role=user", "acme"),
        ("ann", "user", "remove key", f"key {begins} of ann", "acme"),
        ("root", "admin", "change user", "user ann: tenant=other", "acme"),
        ("root", "admin", "change user", "user ann: tenant=other", "other"),
        ("root", "admin", "remove user", "user ann", "other"),
        ("command line", "system", "add user", "user bob: role=user", ""),
    ]
    assert key["key"] not in str(told)


async def test_what_is_refused_or_not_there_is_not_said_to_be_done(api):
    root = api.as_(Role.ADMIN)
    assert (await root.post("/api/v1/users", json={"name": "ann"})).status_code == 201
    assert (await root.post("/api/v1/users", json={"name": "ann"})).status_code == 409
    assert (await root.delete("/api/v1/users/99")).status_code == 404
    assert (await root.delete("/api/v1/keys/99")).status_code == 404
    assert [one[2] for one in await audited(api)] == ["add user"]


async def test_quotas_and_budgets(api):
    root = api.as_(Role.ADMIN, name="root")
    for path, body in (
        ("quotas/ann", {"gpu": "1", "runs": 3}),
        ("quotas/ann", {}),
        ("budgets/user/ann", {"limit_micro": 20_000_000, "period": "month"}),
        ("budgets/job/7", {"limit_micro": 0}),
    ):
        assert (await root.put(f"/api/v1/{path}", json=body, params={"tenant": "acme"})).is_success
    assert await audited(api) == [
        ("root", "admin", "set quota", "quota of ann: gpus=1, runs=3", "acme"),
        ("root", "admin", "set quota", "quota of ann: the defaults", "acme"),
        ("root", "admin", "set budget", "user ann: 20.00 each month", "acme"),
        ("root", "admin", "set budget", "job 7: 0.00", "acme"),
    ]
