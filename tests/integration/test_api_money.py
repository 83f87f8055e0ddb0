"""Quotas, budgets and costs over HTTP, as each role and tenant sees them."""

from datetime import UTC, datetime, timedelta

import pytest

from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.money import Charge, CostKind, Owner, OwnerKind
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.services import budgets, quotas

pytestmark = [pytest.mark.redis]

AGENT = Owner(OwnerKind.AGENT, "1")
LIMITS = {
    "cpu_milli": 10_000,
    "memory_bytes": 20 * 1024**3,
    "gpus": 2,
    "storage_bytes": 100 * 1024**3,
    "runs": 64,
}


async def paid(api, key, charges, *, tenant="", user="ann", at=None):
    """Something that was held and settled."""
    spent = sum(charge.amount_micro for charge in charges)
    async with api.state.db.writing() as session:
        owners = [AGENT, Owner(OwnerKind.USER, user)]
        await budgets.hold(session, key, owners, 1000, tenant=tenant, now=at)
        await budgets.settle(session, key, spent, charges, tenant=tenant, now=at)


async def test_a_user_sees_its_own_quota_and_an_admin_sets_it(api):
    user, operator, admin = (api.as_(role) for role in Role)
    told = (await user.get("/api/v1/quotas/user")).json()
    assert told["limit"] == LIMITS
    assert set(told["held"].values()) == {0}
    assert (await user.put("/api/v1/quotas/user", json={})).status_code == 403
    assert (await user.get("/api/v1/quotas/admin")).status_code == 403
    assert (await operator.get("/api/v1/quotas/user")).status_code == 200
    changed = await admin.put(
        "/api/v1/quotas/user", json={"cpu": "500m", "memory": "1Gi", "gpu": 0, "runs": 3}
    )
    assert changed.json()["limit"] == LIMITS | {
        "cpu_milli": 500,
        "memory_bytes": 1024**3,
        "gpus": 0,
        "runs": 3,
    }
    assert (await user.get("/api/v1/quotas")).json() == [changed.json()]
    wrong = await admin.put("/api/v1/quotas/user", json={"cpu": "much"})
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["msg"] == "Value error, no quantity: write one as 4, 500m, 8Gi or 1.5G"
    async with api.state.db.writing() as session:
        await quotas.hold(
            session, "job:1", "user", Resources(cpu_milli=400), tenant="", settings=api.settings
        )
    assert (await user.get("/api/v1/quotas/user")).json()["held"]["cpu_milli"] == 400


async def test_quotas_of_another_tenant_are_not_seen_but_by_an_admin(api):
    admin = api.as_(Role.ADMIN)
    made = await admin.put("/api/v1/quotas/ann", params={"tenant": "other"}, json={"gpu": "1"})
    assert made.json()["tenant"] == "other"
    operator = api.as_(Role.OPERATOR, tenant="mine")
    assert (await operator.get("/api/v1/quotas")).json() == []
    assert (await operator.get("/api/v1/quotas/ann", params={"tenant": "other"})).status_code == 403
    assert (await operator.get("/api/v1/quotas/ann")).json()["limit"]["gpus"] == 2
    assert len((await admin.get("/api/v1/quotas")).json()) == 1


async def test_a_budget_is_set_by_an_admin_and_told_with_its_entries(api):
    user, admin = api.as_(), api.as_(Role.ADMIN)
    place = "/api/v1/budgets/agent/1"
    for nobody in ("1", "01", "zoe", "9" * 30):
        refused = await admin.put(f"/api/v1/budgets/agent/{nobody}", json={"limit_micro": 5})
        assert (refused.status_code, refused.json()["detail"]) == (404, f"There is no agent {nobody}.")
    registered = await user.post("/api/v1/agents", json={"name": "one", "type": "research"})
    assert registered.json()["id"] == 1
    assert (await user.get(place)).status_code == 404
    assert (await user.put(place, json={"limit_micro": 5})).status_code == 403
    for wrong in ({"limit_micro": -1}, {"limit_micro": 1.5}, {}, {"limit_micro": 1, "period": "year"}):
        assert (await admin.put(place, json=wrong)).status_code == 422
    made = (await admin.put(place, json={"limit_micro": 5000, "period": "month"})).json()
    assert (made["owner"], made["limit_micro"], made["period"]) == (["agent", "1"], 5000, "month")
    await paid(api, "invocation:a", [Charge(CostKind.COMPLETION_TOKENS, 10, 300)])
    told = (await user.get(place)).json()
    assert (told["available_micro"], told["held_micro"], told["spent_micro"]) == (4700, 0, 300)
    assert (await user.get("/api/v1/budgets")).json() == [told]
    assert (await user.get("/api/v1/budgets", params={"kind": "job"})).json() == []
    moves = [
        (one["move"], one["amount_micro"], one["key"], one["by"])
        for one in (await user.get(f"{place}/entries")).json()
    ]
    assert moves == [
        ("release", 700, "invocation:a", ""),
        ("settle", 300, "invocation:a", ""),
        ("hold", 1000, "invocation:a", ""),
        ("grant", 5000, "", "admin"),
    ]
    assert (await user.get(f"{place}/entries", params={"skip": 1, "limit": 1})).json()[0]["move"] == "settle"


async def test_costs_sum_up_by_whatever_is_asked_for(api):
    day = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)
    await paid(
        api, "a", [Charge(CostKind.PROMPT_TOKENS, 4, 1), Charge(CostKind.COMPLETION_TOKENS, 10, 20)], at=day
    )
    await paid(api, "b", [Charge(CostKind.COMPLETION_TOKENS, 5, 10)], user="bob", at=day + timedelta(hours=1))
    await paid(api, "c", [Charge(CostKind.COMPLETION_TOKENS, 7, 99)], tenant="other")
    user = api.as_()

    async def sums(**query):
        told = (await user.get("/api/v1/costs", params=query)).json()
        return [{name: value for name, value in one.items() if value is not None} for one in told]

    assert await sums() == [{"amount_micro": 31}]
    assert await sums(by=["kind"]) == [
        {"kind": "completion_tokens", "quantity": 15, "amount_micro": 30},
        {"kind": "prompt_tokens", "quantity": 4, "amount_micro": 1},
    ]
    assert await sums(by=["day", "user"]) == [
        {"day": "2026-11-20", "user": "ann", "amount_micro": 21},
        {"day": "2026-11-21", "user": "bob", "amount_micro": 10},
    ]
    assert await sums(by=["month", "agent"]) == [{"month": "2026-11", "agent": "1", "amount_micro": 31}]
    assert await sums(since="2026-11-21T00:00:00Z") == [{"amount_micro": 10}]
    assert await sums(until="2026-11-21T01:00:00+01:00", kind="prompt_tokens") == [{"amount_micro": 1}]
    assert await sums(user="bob", by=["user"]) == [{"user": "bob", "amount_micro": 10}]
    assert (await user.get("/api/v1/costs", params={"since": "yesterday"})).status_code == 422
    assert (await user.get("/api/v1/costs", params={"since": "0001-01-01T00:00:00+14:00"})).status_code == 422
    lines = (await user.get("/api/v1/costs/lines")).json()
    assert [(one["key"], one["amount_micro"]) for one in lines] == [("b", 10), ("a", 20), ("a", 1)]
    admin = api.as_(Role.ADMIN)
    assert (await admin.get("/api/v1/costs")).json()[0]["amount_micro"] == 130
