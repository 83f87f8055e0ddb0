"""Two tenants: whatever one has made, the other reads, lists, streams and changes nothing of it.

What is asked comes from the OpenAPI document, so that a new route is asked, too: one that makes something
must have a row in MADE, and a place in a path must be known to `acme`.
"""

import base64
import json
from typing import Annotated

import pytest_asyncio

from gaelp_tasks.api.access import PUBLIC, needs
from gaelp_tasks.models.caller import Caller, Role
from support.api import api_client
from support.openapi import body_of, operations, places_of, query_of

MARK = "zanzibar"  #: in every text of the tenant whose work is looked for
LINE = json.dumps({"prompt": f"Tell of {MARK}."})

#: what makes something -> its body, and the place under which its id stands in paths; ids are asked for first
MADE = {
    "/api/v1/agents": (
        {
            "name": MARK,
            "type": "simulation",
            "docker_image": f"{MARK}/{MARK}:1",
            "description": MARK,
            "secrets": {"KEY": MARK},
            "environment": {"PLACE": MARK},
            "resource_requirements": {"cpu": "1", "memory": "1Gi"},
        },
        "agent_id",
    ),
    "/api/v1/agents/{agent_id}/deployments": ({}, "deployment_id"),
    "/api/v1/agents/{agent_id}/metrics": ({MARK: 1.0}, None),
    "/api/v1/jobs": ({"agent_id": "{agent_id}", "name": MARK, "config": {"place": MARK}}, "job_id"),
    "/api/v1/invocations": ({"prompt": f"Tell of {MARK}.", "agent": "chat"}, "invocation_id"),
    "/api/v1/batches": (LINE, "batch_id"),
    "/api/v1/schedules": (
        {"name": MARK, "cron": "0 2 * * *", "kwargs": {"prompt": f"Tell of {MARK}."}},
        "name",
    ),
    "/api/v1/keys": ({"name": MARK}, "key_id"),
}
#: what makes nothing that could be read, or is an admin's; or only does something to what is there
MAKES_NOTHING = {"/api/v1/tickets", "/api/v1/users"}
#: what an admin has set for it, with an amount that is nobody else's
AMOUNT = 314_159_265
LIMITED = {
    "/api/v1/budgets/{kind}/{owner_id}": {"limit_micro": AMOUNT},
    "/api/v1/quotas/{user}": {"runs": AMOUNT},
}
#: what answers alike for names that nobody has, with the defaults
DEFAULTS = {"/api/v1/quotas/{user}"}
DOES = ("/cancel", "/drain", "/run")
#: other places: kinds and names are no ids
ALSO = {"version": 1, "kind": "agent", "user": f"{MARK}-ann", "user_id": 1, "worker": f"gaelp@{MARK}"}


def filled(value, places):
    """The body with the ids of what was made before."""
    text = json.dumps(value)
    for name, given in places.items():
        text = text.replace(f'"{{{name}}}"', json.dumps(given))
    return json.loads(text)


@pytest_asyncio.fixture
async def api(broker, api_sql):
    key = base64.b64encode(b"k" * 32).decode()
    async with api_client(api_sql, secret_keys=key, training_images=f"{MARK}/*") as made:
        yield made


@pytest_asyncio.fixture
async def acme(api):
    """The ids of what a tenant has made, and whoever made it."""
    root = api.as_(Role.ADMIN, name="root")
    await root.post("/api/v1/users", json={"name": ALSO["user"], "tenant": MARK, "role": "operator"})
    ann = api.as_(Role.OPERATOR, tenant=MARK, name=ALSO["user"])
    places = dict(ALSO)
    for path, (body, place) in MADE.items():
        url = path.format(**places)
        how = {"content": body} if isinstance(body, str) else {"json": filled(body, places)}
        made = await ann.post(url, **how)
        assert made.status_code in {201, 202}, (path, made.text)
        if place:
            places[place] = made.json()["name" if place == "name" else "id"]
    places["owner_id"] = places["agent_id"]
    for path, new in LIMITED.items():
        limited = await root.put(path.format(**places), json=new, params={"tenant": MARK})
        assert limited.status_code == 200, (path, limited.text)
    return ann, places


def asked_of(api):
    return [one for one in operations(api.made.openapi()) if one.path not in PUBLIC]


async def snapshot(client, api, places):
    """All that somebody reads, by path."""
    found = {}
    for operation in asked_of(api):
        if operation.method == "GET" and not operation.path.endswith(("/stream", "/metrics", "/nodes")):
            told = await client.get(operation.url(**places))
            found[operation.path] = (told.status_code, told.text)
    return found


async def test_the_harness_knows_every_place_and_whatever_makes_something(api, acme):
    _, places = acme
    found = asked_of(api)
    unknown = {place for one in found for place in places_of(one)} - places.keys()
    assert not unknown, "tell in ALSO, or MADE, what stands there"
    makers = {
        one.path for one in found if one.method == "POST" and {"201", "202"} & one.schema["responses"].keys()
    }
    makers = {path for path in makers if not path.endswith(DOES)}
    assert makers <= MADE.keys() | MAKES_NOTHING, "have the tenant make one of it"


async def test_who_has_made_it_reads_it(api, acme):
    ann, places = acme
    told = await snapshot(ann, api, places)
    marked = {path for path, (status, text) in told.items() if status == 200 and MARK in text}
    assert marked >= {path for path in MADE if path in told and not path.endswith("/batches")}


async def trespasses(api, bob, places):
    """What somebody reads or does that is of another tenant."""
    document = api.made.openapi()
    secret = {MARK, places["invocation_id"], places["batch_id"], str(AMOUNT)}
    for operation in asked_of(api):
        query, body = query_of(operation, document), body_of(operation, document)
        asks = [query]
        if any(one["name"] == "tenant" for one in operation.schema.get("parameters", ())):
            asks.append(query | {"tenant": MARK})
        for given in asks:
            told = await bob.request(operation.method, operation.url(**places), params=given, json=body)
            text = told.text
            for name in places_of(operation):  # an answer may say what was asked for
                text = text.replace(str(places[name]), "") if isinstance(places[name], str) else text
            reads = any(one in text for one in secret)
            own = "tenant" not in given and (not places_of(operation) or operation.path in DEFAULTS)
            does = told.status_code < 300 and not own and text != "[]"
            if reads or does or told.status_code >= 500:
                yield operation.method, operation.path, given, told.status_code, text[:200]


async def test_another_tenant_reads_and_changes_nothing_of_it(api, acme):
    ann, places = acme
    before = await snapshot(ann, api, places)
    wrong = []
    for role in (Role.USER, Role.OPERATOR):
        for tenant in ("", "other"):
            bob = api.as_(role, tenant=tenant, name="bob")
            wrong += [(role, tenant, *one) async for one in trespasses(api, bob, places)]
    assert wrong == []
    after = await snapshot(ann, api, places)
    assert {path: after[path] for path in before if before[path] != after[path]} == {}


async def test_a_route_that_forgets_the_tenant_is_seen(api, acme):
    _, places = acme

    @api.made.get("/api/v1/planted/{agent_id}")
    async def forgetful(agent_id: int, caller: Annotated[Caller, needs(Role.USER)]):
        return {"name": MARK}

    api.made.openapi_schema = None
    bob = api.as_(Role.USER, tenant="other", name="bob")
    assert [one[1] async for one in trespasses(api, bob, places)] == ["/api/v1/planted/{agent_id}"]
