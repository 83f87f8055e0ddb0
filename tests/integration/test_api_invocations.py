"""Invocations over HTTP: submitted, told, streamed to whoever comes back, cancelled; each tenant its own."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from gaelp_tasks.api import event_stream
from gaelp_tasks.celery_app import app
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.reading import Told
from support.api import api_client

pytestmark = pytest.mark.redis

PLACE = "/api/v1/invocations"


async def submitted(client, **body):
    answer = await client.post(PLACE, json={"prompt": "Hi"} | body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


async def until(look, within_s=10.0):
    for _ in range(int(within_s / 0.01)):
        if found := await look():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {within_s} s")


def answered(name, text="Hello there"):
    result = {"text": text, "stop_reason": "stop", "usage": {"completion_tokens": 2}}
    meta = {"status": "SUCCESS", "result": result, "traceback": None, "children": [], "task_id": name}
    app.redis.set(app.backend.get_key_for_task(name).decode(), json.dumps(meta))
    app.redis.xadd(app.keys.history, {"end": json.dumps({"id": name})})


def told(name, *entries, claim=1):
    """What a worker writes into the stream: texts, and dicts of facts for start and end."""
    for number, entry in enumerate(entries):
        if isinstance(entry, str):
            fields = {"t": entry}
        else:
            fields = {"end" if "outcome" in entry else "start": json.dumps(entry)}
        app.redis.xadd(app.keys.stream(name), fields, id=f"{claim}-{number}")


END = {"outcome": "done", "stop_reason": "stop", "usage": {"completion_tokens": 2}, "result": {"id": "x"}}
START = {"agent": "chat", "model": "m", "tier": "interactive", "attempt": 1, "node": "http://secret:1"}


@asynccontextmanager
async def served(api):
    """The same application behind a real socket, for httpx keeps a stream until it has ended."""
    config = uvicorn.Config(api.made, port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


class Events:
    """The events of a stream, as they come."""

    def __init__(self, lines):
        self._lines = lines

    async def next(self):
        event = {}
        async for line in self._lines:
            if not line and "event" in event:
                return event
            name, _, value = line.partition(": ")
            if name in {"id", "event", "data"}:
                event[name] = json.loads(value) if name == "data" else value
        return None

    async def rest(self):
        return [event async for event in self]

    def __aiter__(self):
        return self

    async def __anext__(self):
        if (event := await self.next()) is None:
            raise StopAsyncIteration
        return event


@asynccontextmanager
async def reading(api, url, name, *, after=None, tenant=""):
    headers = {"Authorization": f"Bearer {api.token(tenant=tenant)}"}
    headers |= {"Last-Event-ID": after} if after else {}
    async with (
        httpx.AsyncClient(headers=headers, timeout=20) as client,
        client.stream("GET", f"{url}{PLACE}/{name}/stream") as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Events(answer.aiter_lines())


async def test_an_invocation_is_accepted_told_and_listed(api):
    client = api.as_(tenant="a", name="anna")
    name = await submitted(client, tier="batch", priority=7)
    seen = (await client.get(f"{PLACE}/{name}")).json()
    assert (seen["state"], seen["owner"], seen["tier"], seen["result"]) == ("queued", "anna", "batch", None)

    async def placed():
        return (await client.get(f"{PLACE}/{name}")).json()["position"]

    assert await until(placed) == {"queue": "batch.any", "number": 1}
    answered(name)

    async def ended():
        found = (await client.get(f"{PLACE}/{name}")).json()
        return found if found["ended_at"] else None

    found = await until(ended)
    assert (found["state"], found["stop_reason"], found["result"]["text"]) == ("done", "stop", "Hello there")
    second = await submitted(client)
    assert [one["id"] for one in (await client.get(PLACE)).json()] == [second, name]
    assert [one["id"] for one in (await client.get(PLACE, params={"state": "done"})).json()] == [name]
    assert [one["id"] for one in (await client.get(PLACE, params={"skip": 1, "limit": 1})).json()] == [name]


async def test_the_same_key_gives_the_same_id_and_for_another_body_409(api):
    client = api.as_()
    keyed = {"Idempotency-Key": "k"}
    ids = {(await client.post(PLACE, json={"prompt": "Hi"}, headers=keyed)).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    assert (await client.post(PLACE, json={"prompt": "No"}, headers=keyed)).status_code == 409


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"prompt": " "}, 422),
        ({"prompt": "Hi", "agent": "nobody"}, 422),
        ({"prompt": "Hi", "colour": "red"}, 422),
        ({"prompt": "Hi", "priority": 11}, 422),
        ({"prompt": "Hi", "images": ["http://127.0.0.1:1/x.png"]}, 422),
        ({"prompt": "Hi", "tenant": "b"}, 403),
    ],
)
async def test_what_cannot_be_accepted_is_refused(api, body, status):
    assert (await api.as_(tenant="a").post(PLACE, json=body)).status_code == status


async def test_of_another_tenant_there_is_nothing(api):
    name = await submitted(api.as_(tenant="a"))
    stranger = api.as_(Role.OPERATOR, tenant="b")
    for ask in (
        stranger.get(f"{PLACE}/{name}"),
        stranger.get(f"{PLACE}/{name}/stream"),
        stranger.post(f"{PLACE}/{name}/cancel"),
    ):
        assert (await ask).status_code == 404
    assert (await stranger.get(PLACE)).json() == []
    assert len((await api.as_(Role.ADMIN).get(PLACE)).json()) == 1
    assert not app.redis.exists(app.keys.cancel(name))


async def test_where_too_many_wait_one_is_asked_to_come_back(broker, api_sql):
    async with api_client(api_sql, api_max_waiting=1) as small:
        client = small.as_()
        await submitted(client)
        answer = await client.post(PLACE, json={"prompt": "Hi"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


async def test_what_is_cancelled_is_asked_to_stop_and_told_so(api):
    client = api.as_()
    name = await submitted(client)
    assert (await client.post(f"{PLACE}/{name}/cancel")).status_code == 202
    assert app.redis.get(app.keys.cancel(name)) == "user"
    assert (await client.get(f"{PLACE}/{name}")).json()["cancelled"] is True


async def test_a_stream_tells_all_from_the_first_token_and_goes_on_behind_an_id(api):
    name = await submitted(api.as_())
    told(name, START, "Hel", "lo", END)
    async with served(api) as url:
        async with reading(api, url, name) as events:
            seen = await events.rest()
        assert [one["event"] for one in seen] == ["start", "token", "token", "end"]
        assert [one["data"].get("text") for one in seen[1:3]] == ["Hel", "lo"]
        assert seen[-1]["data"] == {key: END[key] for key in ("outcome", "stop_reason", "usage")}
        assert "secret" not in json.dumps(seen)
        async with reading(api, url, name, after=seen[1]["id"]) as events:
            assert await events.rest() == seen[2:]


async def test_a_reader_sees_tokens_as_they_come_and_a_run_that_starts_over(api):
    name = await submitted(api.as_())
    async with served(api) as url, reading(api, url, name) as events:
        told(name, START, "one")
        assert [(await events.next())["event"] for _ in range(2)] == ["start", "token"]
        told(name, START | {"resumes": True, "from": 1}, "two", claim=2)
        assert [(await events.next())["event"] for _ in range(2)] == ["start", "token"]
        told(name, START, "three", END, claim=3)
        assert [one["event"] for one in await events.rest()] == ["restart", "token", "end"]


async def test_a_reader_who_comes_back_after_a_restart_is_told_of_it(api):
    name = await submitted(api.as_())
    told(name, START, "one")
    told(name, START, "two", END, claim=2)
    async with served(api) as url, reading(api, url, name, after="1-1") as events:
        assert [one["event"] for one in await events.rest()] == ["restart", "token", "end"]


async def test_what_redis_has_forgotten_is_told_from_the_database(api):
    name = await submitted(api.as_())
    answered(name)

    async def ended():
        found = await api.state.accepting.outbox.open_of([name])
        return not found

    await until(ended)
    app.redis.flushdb()
    async with served(api) as url:
        async with reading(api, url, name) as events:
            seen = await events.rest()
        async with reading(api, url, name, after="1-5") as events:
            assert [one["event"] for one in await events.rest()] == ["end"]
    assert [(one["event"], one["data"].get("text")) for one in seen] == [
        ("token", "Hello there"),
        ("end", None),
    ]


async def test_a_silent_stream_ends_where_the_database_knows_the_end(api):
    name = await submitted(api.as_())
    async with served(api) as url, reading(api, url, name) as events:
        answered(name)
        assert [one["event"] for one in await events.rest()] == ["end"]


async def test_who_leaves_takes_the_line_to_redis_along(api):
    name = await submitted(api.as_())
    told(name, START)
    async with served(api) as url:
        before = len(app.redis.client_list())
        async with reading(api, url, name) as events:
            await events.next()
            assert api.state.readers.now == 1

        async def left():
            return api.state.readers.now == 0 and len(app.redis.client_list()) <= before

        await until(left)


async def test_only_so_many_streams_are_read_at_once(broker, api_sql):
    async with api_client(api_sql, api_max_streams=1) as small, served(small) as url:
        name = await submitted(small.as_())
        told(name, START)
        async with reading(small, url, name) as events:
            await events.next()
            async with httpx.AsyncClient() as client:
                headers = {"Authorization": f"Bearer {small.token()}"}
                answer = await client.get(f"{url}{PLACE}/{name}/stream", headers=headers)
                assert answer.status_code == 429


async def test_one_user_reads_at_most_a_quarter_of_the_streams(broker, api_sql):
    async with api_client(api_sql, api_max_streams=7) as small, served(small) as url:
        name = await submitted(small.as_())
        told(name, START)
        async with reading(small, url, name) as events, httpx.AsyncClient() as client:
            await events.next()
            headers = {"Authorization": f"Bearer {small.token()}"}
            answer = await client.get(f"{url}{PLACE}/{name}/stream", headers=headers)
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
            assert (
                answer.json()["detail"]
                == "You read as many streams here as one user may (1): ask again later."
            )
            other = {"Authorization": f"Bearer {small.token(name='bob')}"}
            async with client.stream("GET", f"{url}{PLACE}/{name}/stream", headers=other) as answer:
                assert answer.status_code == 200
                assert small.state.readers.now == 2


async def test_a_reader_that_takes_nothing_is_cut_and_nothing_is_kept_for_it():
    given = 0

    async def endless():
        nonlocal given
        while True:
            given += 1
            yield Told("token", {"text": "x"}, f"1-{given}")

    sent = 0

    async def send(message):
        nonlocal sent
        sent += 1
        if sent > 5:
            await asyncio.Event().wait()

    async def receive():
        await asyncio.Event().wait()

    readers = event_stream.Readers(1)
    response = event_stream.EventStream(endless(), readers, Caller(name="ann"), slow_s=0.05)
    await asyncio.wait_for(response({"type": "http"}, receive, send), 5)
    assert given <= 5
    assert readers.now == 0


async def test_last_event_id_must_be_one(api):
    client = api.as_()
    name = await submitted(client)
    for wrong in ("x", "1", "1-2-3", "-1-0"):
        answer = await client.get(f"{PLACE}/{name}/stream", headers={"Last-Event-ID": wrong})
        assert answer.status_code == 422
