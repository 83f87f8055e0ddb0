"""What a request goes through before its route: sizes, rates, idempotency keys, ids."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gaelp_tasks.db.idempotency import forget
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.rates import Failures, Rates
from support.api import api_client

USERS = "/api/v1/users"


@pytest.fixture
def admin(api):
    return api.as_(Role.ADMIN, name="root")


async def listed(admin):
    return [user["name"] for user in (await admin.get(USERS)).json()]


@pytest.mark.parametrize(
    "kind", [{}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "text/plain"}]
)
async def test_a_body_is_read_as_json_whatever_it_is_called(admin, kind):
    made = await admin.post(USERS, content=b'{"name": "ann"}', headers=kind)
    assert made.status_code == 201, made.text


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"[" * 50_000, b'{"name": "\xff"}', b"NaN", b"[]"])
async def test_a_body_that_is_no_json_is_refused_without_a_trace(admin, body):
    told = await admin.post(USERS, content=body)
    assert told.status_code in {400, 422}
    assert told.json().keys() == {"detail"}
    assert "Traceback" not in told.text


async def test_what_was_sent_is_not_repeated_in_a_refusal(admin):
    told = await admin.post(USERS, json={"name": "ann", "role": "s3cret-word", "s3cret-word": 5})
    assert told.status_code == 422
    assert "s3cret-word" not in json.dumps([one["msg"] for one in told.json()["detail"]])


async def test_a_long_body_is_refused_by_its_header_and_while_it_comes(broker, api_sql):
    async with api_client(api_sql, api_max_body_bytes=1000) as api:
        admin = api.as_(Role.ADMIN)
        pieces = 0

        async def stream():
            nonlocal pieces
            for _ in range(100):
                pieces += 1
                yield b" " * 100

        assert (await admin.post(USERS, content=b" " * 1001)).status_code == 413
        assert (await admin.post(USERS, content=stream())).status_code == 413
        assert pieces < 15
        keyed = {"Idempotency-Key": "long"}
        assert (await admin.post(USERS, content=stream(), headers=keyed)).status_code == 413
        assert (await admin.post(USERS, content=b'{"name": "ann"}'.ljust(1000))).status_code == 201


async def test_a_post_under_a_key_is_done_once_and_answered_alike(admin):
    keyed = {"Idempotency-Key": "one"}
    first = await admin.post(USERS, json={"name": "ann"}, headers=keyed)
    again = await admin.post(USERS, json={"name": "ann"}, headers=keyed)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    other = await admin.post(USERS, json={"name": "bea"}, headers=keyed)
    assert other.status_code == 409
    assert await listed(admin) == ["ann"]


async def test_of_many_at_once_under_a_key_one_is_done(admin):
    keyed = {"Idempotency-Key": "many"}
    sent = [admin.post(USERS, json={"name": "ann"}, headers=keyed) for _ in range(20)]
    told = [answer.status_code for answer in await asyncio.gather(*sent)]
    assert set(told) <= {201, 409}
    assert told.count(201) >= 1
    assert await listed(admin) == ["ann"]


async def test_what_was_refused_may_be_sent_again_under_its_key(admin):
    keyed = {"Idempotency-Key": "again"}
    assert (await admin.post(USERS, json={"name": ""}, headers=keyed)).status_code == 422
    assert (await admin.post(USERS, json={"name": "ann"}, headers=keyed)).status_code == 201


async def test_a_key_is_its_users_own(api, admin):
    keyed = {"Idempotency-Key": "shared"}
    other = api.as_(Role.ADMIN, name="other", tenant="acme")
    assert (await admin.post(USERS, json={"name": "ann"}, headers=keyed)).status_code == 201
    assert (await other.post(USERS, json={"name": "bea"}, headers=keyed)).status_code == 201


async def test_what_is_not_answered_yet_is_not_done_beside_it(api, admin):
    keyed = {"Idempotency-Key": "lost"}
    first = await admin.post(USERS, json={"name": "ann"}, headers=keyed)
    assert first.status_code == 201
    async with api.state.db.writing() as session:  # its answer is not kept yet
        await session.execute(text("UPDATE idempotent_requests SET status = NULL, body = NULL"))
    told = await admin.post(USERS, json={"name": "ann"}, headers=keyed)
    assert told.status_code == 409
    assert "few seconds" in told.json()["detail"]
    assert await listed(admin) == ["ann"]


async def test_keys_are_forgotten_in_time(api, admin):
    keyed = {"Idempotency-Key": "old"}
    await admin.post(USERS, json={"name": "ann"}, headers=keyed)
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert await forget(api.state.db, later - timedelta(hours=1)) == 0
    assert await forget(api.state.db, later) == 1
    assert (await admin.post(USERS, json={"name": "bea"}, headers=keyed)).status_code == 201


async def test_a_secret_answer_is_given_once(api, admin):
    await admin.post(USERS, json={"name": "root", "role": "admin"})
    keyed = {"Idempotency-Key": "secret"}
    first = await admin.post("/api/v1/keys", json={}, headers=keyed)
    again = await admin.post("/api/v1/keys", json={}, headers=keyed)
    assert (first.status_code, again.status_code) == (201, 409)
    assert len((await admin.get("/api/v1/keys")).json()) == 1
    ticket = await admin.post("/api/v1/tickets", headers={"Idempotency-Key": "ticket"})
    again = await admin.post("/api/v1/tickets", headers={"Idempotency-Key": "ticket"})
    assert (ticket.status_code, again.status_code) == (201, 409)


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", "a\tb"])
async def test_a_key_that_is_none_is_refused(admin, key):
    told = await admin.post(USERS, json={"name": "ann"}, headers=[(b"Idempotency-Key", key.encode())])
    assert told.status_code == 422


async def test_who_asks_too_fast_waits_and_others_do_not(broker, api_sql):
    async with api_client(api_sql, api_rate_per_s=1, api_burst=5) as api:
        ann, bea = api.as_(name="ann"), api.as_(name="bea")
        told = [(await ann.get(f"{USERS}/me")) for _ in range(8)]
        assert [answer.status_code for answer in told].count(429) >= 2
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in told if answer.status_code == 429)
        assert (await bea.get(f"{USERS}/me")).status_code == 200


async def test_all_replicas_share_a_bucket(api):
    one, two = (Rates(api.state.redis, api.state.app.keys, 1000, 300) for _ in range(2))
    caller = Caller(name="shared")
    waits = [await rates.wait_s(caller) for _ in range(500) for rates in (one, two)]
    assert 300 <= waits.count(0.0) <= 900, "a second's worth may have come in meanwhile"


async def test_without_redis_nobody_is_held_up(api, caplog):
    class Away:
        def register_script(self, _):
            async def fail(**_):
                raise ConnectionError

            return fail

    rates = Rates(Away(), api.state.app.keys, 10, 10)
    assert [await rates.wait_s(Caller(name="ann")) for _ in range(50)] == [0.0] * 50
    assert len(caplog.records) == 1


async def test_an_address_that_keeps_failing_waits_and_good_tokens_still_come_in(broker, api_sql):
    async with api_client(api_sql, api_failures_per_minute=5) as api:
        admin = api.as_(Role.ADMIN, name="root")
        await admin.post(USERS, json={"name": "root", "role": "admin"})
        key = (await admin.post("/api/v1/keys", json={})).json()["key"]
        by_key = api.with_headers(Authorization=f"Bearer {key}")
        assert (await by_key.get(f"{USERS}/me")).status_code == 200
        bad = api.with_headers(Authorization="Bearer junk")
        told = [(await bad.get(f"{USERS}/me")).status_code for _ in range(8)]
        assert told == [401] * 5 + [429] * 3
        guess = api.with_headers(Authorization=f"Bearer gaelp_{'0' * 12}_{'0' * 64}")
        assert (await guess.get(f"{USERS}/me")).status_code == 429
        assert (await admin.get(f"{USERS}/me")).status_code == 200
        assert (await by_key.get(f"{USERS}/me")).status_code == 200


def test_an_address_may_fail_again_after_a_while_and_a_network_is_one():
    now_s = 0.0
    failures = Failures(2, lambda: now_s)
    for address in ("2001:db8::1", "2001:db8::2"):
        failures.note(address)
    assert failures.wait_s("2001:db8::3") > 0
    assert failures.wait_s("2001:db9::1") == 0
    now_s = 31.0
    assert failures.wait_s("2001:db8::3") == 0


async def test_each_answer_has_an_id_that_the_log_tells_with_no_secret(api, caplog):
    caplog.set_level(logging.INFO, "gaelp_tasks.api")
    ann = api.as_(name="ann")
    token = ann.headers["Authorization"].split()[1]
    given = await ann.get(f"{USERS}/me?ticket=hush", headers={"X-Request-Id": "mine-1"})
    assert given.headers["X-Request-Id"] == "mine-1"
    made = await ann.get(f"{USERS}/me", headers={"X-Request-Id": "not allowed\x7f"})
    assert len(made.headers["X-Request-Id"]) == 32
    lines = [record.getMessage() for record in caplog.records if record.name == "gaelp_tasks.api.requests"]
    assert any("[mine-1]" in line and "ann" in line and " 200 " in line for line in lines)
    assert not any("hush" in line or token in line for line in lines)


async def test_what_breaks_inside_is_told_without_a_trace_and_its_key_is_not_done_again(api):
    @api.made.post("/api/v1/broken")
    async def broken():
        raise RuntimeError("s3cret")

    client = api.as_()
    client._transport.raise_app_exceptions = False
    keyed = {"Idempotency-Key": "broken"}
    first, again = [await client.post("/api/v1/broken", headers=keyed) for _ in range(2)]
    assert (first.status_code, again.status_code) == (500, 500)
    assert first.json().keys() == {"detail"}
    assert "s3cret" not in first.text + again.text
    assert again.headers["Idempotency-Replayed"] == "true"
