"""WebSockets on a real port: who may watch what, what they are shown, how it ends."""

import asyncio
import json

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from gaelp_tasks.api import protocol
from gaelp_tasks.api.watching import places, sign_in, sockets
from gaelp_tasks.errors import NotFound
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.services.telling import tell
from support.api import HOUR_S, api_client
from support.watching import closed, heard, served, watcher

pytestmark = pytest.mark.redis

KEYS = Keys("")
METRICS = [{"reward": 0.5}]


@pytest.fixture(autouse=True)
def agents(monkeypatch):
    """Agent 1 of the tenant acme; removed from the set it is gone."""
    there = {1}

    async def agent_now(db, scope, agent_id):
        if agent_id not in there or scope not in {"acme", None}:
            raise NotFound("There is no such agent.")
        return {"agent": {"id": agent_id, "status": "running"}, "metrics": METRICS}

    monkeypatch.setattr(sockets, "agent_now", agent_now)
    return there


@pytest_asyncio.fixture
async def place(api):
    async with served(api) as url:
        yield url


def told(**data):
    return AgentEvent(event=EventKind.METRICS, agent_id=1, data=data)


async def read_on(client):
    while True:
        await client.recv()


# --- who one is ---


async def test_one_signs_in_by_first_message_and_is_shown_what_is_known_and_then_what_happens(api, place):
    async with watcher(f"{place}/ws/1", token=api.token(tenant="acme")) as client:
        first = await heard(client)
        assert (first["event"], first["agent_id"]) == ("snapshot", 1)
        assert (first["agent"]["status"], first["metrics"]) == ("running", METRICS)
        await tell(api.state.redis, KEYS, told(reward=0.75))
        second = await heard(client)
        assert (second["event"], second["data"]) == ("metrics", {"reward": 0.75})


async def test_one_signs_in_by_header_and_by_subprotocol_which_is_not_repeated(api, place):
    token = api.token(tenant="acme")
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(f"{place}/ws/1", additional_headers=headers, proxy=None) as client:
        assert (await heard(client))["event"] == "snapshot"
    asked = ["gaelp", f"bearer.{token}"]
    async with connect(f"{place}/ws/1", subprotocols=asked, proxy=None) as client:
        assert (await heard(client))["event"] == "snapshot"
        assert client.subprotocol == "gaelp"


@pytest.mark.parametrize("way", ["message", "address", "subprotocol"])
async def test_a_ticket_opens_one_socket_and_no_second(api, place, way):
    made = await api.as_(tenant="acme").post("/api/v1/tickets")
    assert (made.status_code, made.json()["expires_in_s"]) == (201, 30)
    ticket = made.json()["ticket"]
    assert ticket not in str(await api.state.redis.keys("*")), "a digest is all that is kept"

    def shown():
        if way == "message":
            return watcher(f"{place}/ws/1", ticket=ticket)
        if way == "address":
            return watcher(f"{place}/ws/1?ticket={ticket}")
        return connect(f"{place}/ws/1", subprotocols=["gaelp", f"ticket.{ticket}"], proxy=None)

    async with shown() as client:
        assert (await heard(client))["event"] == "snapshot"
    async with shown() as client:
        assert await closed(client) == (4401, "The ticket does not hold: it is over, used, or none.")


async def test_a_ticket_that_nobody_used_in_time_is_over(api, broker, api_sql):
    async with api_client(api_sql, api_ticket_ttl_s=0.001) as short, served(short) as url:
        ticket = (await short.as_(tenant="acme").post("/api/v1/tickets")).json()["ticket"]
        await asyncio.sleep(0.01)
        async with watcher(f"{url}/ws/1", ticket=ticket) as client:
            assert (await closed(client))[0] == 4401


async def test_a_token_in_an_address_is_not_even_looked_at(api, place):
    for name in ("token", "access_token", "ticket=x&token"):
        async with watcher(f"{place}/ws/1?{name}={api.token(tenant='acme')}") as client:
            assert await closed(client) == (4401, sign_in.IN_ADDRESS)


WRONG = [
    *("", "x", "[]", "{}", "7", "null", "[" * 5000, b"\xff", '{"token": 5}', '{"token": "x"}'),
    *('{"ticket": "x"}', '{"password": "x"}', '{"token": "x", "ticket": "y"}'),
    json.dumps({"token": "x" * 100_000}),
]


async def test_who_says_something_else_is_sent_away(place):
    for first in WRONG:
        async with connect(f"{place}/ws/1", proxy=None) as client:
            await client.send(first)
            assert (await closed(client))[0] == 4401, first


async def test_who_says_nothing_is_sent_away(place, monkeypatch):
    monkeypatch.setattr(sign_in, "FIRST_MESSAGE_S", 0.05)
    async with connect(f"{place}/ws/1", proxy=None) as client:
        assert await closed(client) == (4401, sign_in.HOW)


async def test_strangers_have_few_places_and_get_them_back(api, place, monkeypatch):
    monkeypatch.setattr(places, "MOST_STRANGERS", 2)
    async with connect(f"{place}/ws/1", proxy=None), connect(f"{place}/ws/1", proxy=None):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{place}/ws/1", proxy=None)
        assert refused.value.response.status_code == 429
        assert "Retry-After" in refused.value.response.headers
    async with watcher(f"{place}/ws/1", token=api.token(tenant="acme")) as client:
        assert (await heard(client))["event"] == "snapshot"


# --- what one may see ---


async def test_an_agent_of_another_tenant_is_like_one_that_does_not_exist(api, place):
    for agent_id in ("1", "2", "0", "-1", "x", "9" * 30, "\N{SUPERSCRIPT TWO}"):
        async with watcher(f"{place}/ws/{agent_id}", token=api.token(tenant="other")) as client:
            assert await closed(client) == (4404, "There is no such agent."), agent_id
    assert not len(api.state.watchers.hub)


async def test_an_admin_sees_every_tenants(api, place):
    async with watcher(f"{place}/ws/1", token=api.token(Role.ADMIN, tenant="other")) as client:
        assert (await heard(client))["event"] == "snapshot"


async def test_the_system_is_for_operators(api, place):
    async with watcher(f"{place}/ws/system", token=api.token(Role.USER)) as client:
        assert (await closed(client))[0] == 4403
    async with watcher(f"{place}/ws/system", token=api.token(Role.OPERATOR)) as client:
        first, second = await heard(client), await heard(client)
        assert (first["event"], second["event"]) == ("snapshot", "status")
        assert first["data"].keys() >= {"queues", "nodes", "dead_letters"}
        assert second["data"]["nodes"] == []


# --- how it goes on and ends ---


async def test_who_may_not_watch_any_more_is_sent_away(api, place, agents, monkeypatch):
    monkeypatch.setattr(sockets, "CHECK_S", 0.0)
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.02)
    async with watcher(f"{place}/ws/1", token=api.token(tenant="acme")) as client:
        assert (await heard(client))["event"] == "snapshot"
        assert (await heard(client))["event"] == "heartbeat"
        agents.clear()
        assert (await closed(client))[0] == 4404


async def test_a_token_that_is_over_ends_its_socket(api, place, monkeypatch):
    monkeypatch.setattr(sockets, "CHECK_S", 0.0)
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.02)
    token = api.token(tenant="acme")
    async with watcher(f"{place}/ws/1", token=token) as client:
        assert (await heard(client))["event"] == "snapshot"
        monkeypatch.setattr("gaelp_tasks.services.tokens.LEEWAY_S", -2 * HOUR_S)
        api.state.identity._claims.clear()
        assert (await closed(client))[0] == 4401


async def test_a_ticket_of_somebody_who_was_shut_out_shows_no_more(api, place, monkeypatch):
    monkeypatch.setattr(sockets, "CHECK_S", 0.0)
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.02)
    admin = api.as_(Role.ADMIN, name="admin")
    added = await admin.post("/api/v1/users", json={"name": "ann", "tenant": "acme"})
    ticket = (await api.as_(tenant="acme", name="ann").post("/api/v1/tickets")).json()["ticket"]
    async with watcher(f"{place}/ws/1", ticket=ticket) as client:
        assert (await heard(client))["event"] == "snapshot"
        await admin.patch(f"/api/v1/users/{added.json()['id']}", json={"disabled": True})
        assert (await closed(client))[0] == 4401


async def test_a_ticket_of_somebody_who_was_demoted_shows_the_cluster_no_more(api, place, monkeypatch):
    monkeypatch.setattr(sockets, "CHECK_S", 0.0)
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.02)
    admin = api.as_(Role.ADMIN, name="admin")
    given = {"name": "olga", "tenant": "acme", "role": "operator"}
    added = await admin.post("/api/v1/users", json=given)
    olga = api.as_(Role.OPERATOR, tenant="acme", name="olga")
    ticket = (await olga.post("/api/v1/tickets")).json()["ticket"]
    async with watcher(f"{place}/ws/system", ticket=ticket) as client:
        assert (await heard(client))["event"] == "snapshot"
        await admin.patch(f"/api/v1/users/{added.json()['id']}", json={"role": "user"})
        assert (await closed(client))[0] == 4403


async def test_a_user_has_so_many_places_and_gets_them_back(broker, api_sql):
    async with api_client(api_sql, api_watchers_per_user=2) as small, served(small) as url:
        token = small.token(tenant="acme")
        async with watcher(f"{url}/ws/1", token=token) as one, watcher(f"{url}/ws/1", token=token) as two:
            await heard(one)
            await heard(two)
            async with watcher(f"{url}/ws/1", token=token) as third:
                assert (await closed(third))[0] == 4429
            async with watcher(f"{url}/ws/1", token=small.token(tenant="acme", name="other")) as other:
                await heard(other)
        while len(small.state.watchers.places):
            await asyncio.sleep(0.005)


async def test_an_address_that_keeps_failing_guesses_no_more_keys_and_good_tokens_still_come_in(
    broker, api_sql
):
    async with api_client(api_sql, api_failures_per_minute=4) as small, served(small) as url:
        key = f"gaelp_{'0' * 12}_{'0' * 64}"
        for bad in ({"token": key}, {"ticket": "guessed"}, {"token": "guessed"}, {"token": key}):
            async with watcher(f"{url}/ws/1", **bad) as client:
                assert (await closed(client))[0] == 4401
        async with watcher(f"{url}/ws/1", token=key) as client:
            assert await closed(client) == (4429, "Too many sign-ins from this address have failed.")
        async with watcher(f"{url}/ws/1", token=small.token(tenant="acme")) as client:
            await heard(client)


async def test_a_client_that_talks_is_sent_away(api, place, monkeypatch):
    monkeypatch.setattr(sockets, "CHATTER", 3)
    async with watcher(f"{place}/ws/1", token=api.token(tenant="acme")) as client:
        await heard(client)
        for _ in range(3):
            await client.send("hello?")
        assert (await closed(client))[0] == 1008


async def test_a_client_that_reads_nothing_loses_the_oldest_and_is_told_how_many(api, place):
    bulk = "x" * 20_000
    async with connect(f"{place}/ws/1", proxy=None, max_queue=1) as client:
        await client.send(json.dumps({"token": api.token(tenant="acme")}))
        assert (await heard(client))["event"] == "snapshot"
        for number in range(1000):
            await tell(api.state.redis, KEYS, told(step=number, bulk=bulk))
        missed, last = 0, -1
        while last < 999:
            event = await heard(client)
            if event["event"] == "missed":
                missed += event["count"]
            else:
                assert event["data"]["step"] > last, "in their order"
                last = event["data"]["step"]
        assert missed > 300, "20 MB have not been kept for it"


async def test_a_client_that_never_reads_is_cut_off(api, place, monkeypatch):
    monkeypatch.setattr(sockets, "SEND_S", 0.05)
    monkeypatch.setattr(protocol, "UNREAD_S", 0.3)
    async with connect(f"{place}/ws/1", proxy=None, max_queue=1) as client:
        await client.send(json.dumps({"token": api.token(tenant="acme")}))
        await heard(client)
        while len(api.state.watchers.places):
            await tell(api.state.redis, KEYS, told(bulk="x" * 60_000))
        with pytest.raises(ConnectionClosedError):  # without a word, for it would not have read one
            await asyncio.wait_for(read_on(client), 10)
