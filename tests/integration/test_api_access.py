"""Every route of the OpenAPI document against every kind of bad token, and every role against every route."""

import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from fastapi import FastAPI

from gaelp_tasks.api.access import PUBLIC, policies
from gaelp_tasks.api.routes import ROUTERS
from gaelp_tasks.models.caller import Caller, Role
from support.api import SECRET
from support.openapi import operations

NOW = time.time()
CLAIMS = {"sub": "eve", "tenant": "", "role": "admin", "admin": True, "exp": int(NOW + 3600)}


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(claims, secret=SECRET, algorithm="HS256", **headers):
    return jwt.encode(claims, secret, algorithm=algorithm, headers=headers or None)


def without(*names):
    return {name: value for name, value in CLAIMS.items() if name not in names}


def forged_admin():
    """A user's own token in which only the claims were changed."""
    head, _, signature = signed(CLAIMS | {"role": "user", "admin": False}).split(".")
    return f"{head}.{part(CLAIMS)}.{signature}"


def unsigned(algorithm):
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(CLAIMS)}."


def signed_as(algorithm):
    """The right secret, by HMAC-SHA256, under another name."""
    text = f"{part({'alg': algorithm})}.{part(CLAIMS)}"
    mac = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


BAD = {
    "none": {},
    "empty": {"Authorization": ""},
    "no token": {"Authorization": "Bearer "},
    "basic": {"Authorization": "Basic " + base64.b64encode(b"admin:admin").decode()},
    "token without a scheme": {"Authorization": signed(CLAIMS)},
    "token in a cookie": {"Cookie": f"token={signed(CLAIMS)}"},
    "junk": "junk",
    "dots": "..",
    "long": "x" * 100_000,
    "binary": "\xff\xfe",
    "wrong algorithm": signed(CLAIMS, secret=SECRET[::-1], algorithm="HS512"),
    "wrong algorithm, right secret": signed(CLAIMS, algorithm="HS384"),
    "algorithm none": unsigned("none"),
    "algorithm None": unsigned("None"),
    "no signature": unsigned("HS256"),
    "algorithm by name of a public key": signed_as("RS256"),
    "expired": signed(CLAIMS | {"exp": int(NOW - 60)}),
    "no exp": signed(without("exp")),
    "exp is no number": signed(without("exp") | {"exp": "soon"}),
    "not yet": signed(CLAIMS | {"nbf": int(NOW + 600)}),
    "no sub": signed(without("sub")),
    "empty sub": signed(CLAIMS | {"sub": ""}),
    "sub is no text": signed(CLAIMS | {"sub": 5}),
    "wrong secret": signed(CLAIMS, secret=SECRET[::-1]),
    "forged admin": forged_admin(),
    "role that is none": signed(CLAIMS | {"role": "root"}),
    "admin and yet user": signed(CLAIMS | {"role": "user"}),
    "admin is no truth": signed(without("role") | {"admin": "true"}),
    "tenant is no text": signed(CLAIMS | {"tenant": ["a"]}),
    "critical header": signed(CLAIMS, crit=["exp"]),
    "key that nobody has": f"gaelp_{'0' * 12}_{'0' * 64}",
    "key without a secret": f"gaelp_{'0' * 12}_",
}


def headers_of(bad):
    return bad if isinstance(bad, dict) else [(b"Authorization", b"Bearer " + bad.encode("latin-1"))]


async def asked(client, operation, **how):
    return await client.request(operation.method, operation.url(), content=b"{}", **how)


def all_of(api):
    return [one for one in operations(api.made.openapi()) if one.path not in PUBLIC]


async def test_every_route_refuses_every_kind_of_bad_token(api_sql, broker):
    from support.api import api_client

    async with api_client(api_sql, api_failures_per_minute=100_000) as api:
        found, nobody = all_of(api), api.with_headers()
        let_in = []
        for name, bad in BAD.items():
            for operation in found:
                told = await asked(nobody, operation, headers=headers_of(bad))
                if told.status_code != 401 or told.json().keys() != {"detail"}:
                    let_in.append((name, operation.method, operation.path, told.status_code))
        assert not let_in
        good = await nobody.get("/api/v1/users/me", headers={"Authorization": f"Bearer {signed(CLAIMS)}"})
        assert good.status_code == 200, "what the bad ones were made of is good"


async def test_every_route_refuses_a_role_that_is_too_low(api):
    needed = policies(api.made.routes)
    wrong = []
    for operation in all_of(api):
        least = needed[operation.method, operation.path]
        for role in Role:
            told = await asked(api.as_(role), operation) if not role.covers(least) else None
            if told is not None and told.status_code != 403:
                wrong.append((role, operation.method, operation.path, told.status_code))
    assert not wrong


def test_every_route_has_a_policy():
    found = policies(ROUTERS)
    assert len(found) > 5
    assert not [(method, path) for (method, path), role in found.items() if not role and path not in PUBLIC]


async def test_no_route_is_hidden_from_the_document(api):
    told = {(one.method, one.path) for one in operations(api.made.openapi())}
    assert {route for route in policies(api.made.routes) if route[1] not in PUBLIC} <= told


def test_a_route_without_a_policy_is_seen():
    planted = FastAPI(openapi_url=None)

    @planted.get("/api/v1/planted")
    async def open_to_all():
        """It forgot to say who may come in."""

    assert policies(planted.routes) == {("GET", "/api/v1/planted"): None}


async def test_a_route_that_forgot_its_policy_still_needs_a_token(api):
    @api.made.get("/api/v1/planted")
    async def forgotten():
        """As above."""

    assert (await api.with_headers().get("/api/v1/planted")).status_code == 401


async def test_unknown_paths_tell_nobody_who_is_not_signed_in_that_they_are_unknown(api):
    assert (await api.with_headers().get("/api/v1/nothing")).status_code == 401
    assert (await api.as_().get("/api/v1/nothing")).status_code == 404


async def test_eighty_forged_tokens_a_second_ask_nothing_of_sql(api, monkeypatch):
    asked_sql = []
    monkeypatch.setattr(type(api.state.db), "reading", lambda *_: asked_sql.append(1))
    forged = signed(CLAIMS, secret=SECRET[::-1])
    client = api.with_headers(Authorization=f"Bearer {forged}")
    told = {(await client.get("/api/v1/users")).status_code for _ in range(80)}
    assert told == {401, 429}
    assert not asked_sql


def test_a_token_cannot_be_made_for_nobody():
    with pytest.raises(ValueError, match="name"):
        Caller(name="")
