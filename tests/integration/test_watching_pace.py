"""From a metric over HTTP to watchers of two replicas, and over a restart of Redis; `--long`: 200 of them."""

import asyncio
import json
import shutil
import time
from contextlib import AsyncExitStack, ExitStack

import httpx
import pytest
from websockets.asyncio.client import connect

from support.api_server import ApiServer
from support.redis_server import RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.slow]

PACE_S = 0.05  #: between two updates
AGENTS = 4


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def replicas(redis, newest_tables, tmp_path_factory):
    """Two processes on one Redis and one database."""
    folder = tmp_path_factory.mktemp("replicas")
    shutil.copy(newest_tables, folder / "api.db")
    settings = {"GAELP_BROKER_URL": redis.url, "GAELP_API_WATCHERS_PER_USER": "500"}
    with ExitStack() as stack:
        servers = [ApiServer(folder, **settings) for _ in range(2)]
        for server in servers:
            stack.enter_context(server)
        yield servers


async def agents(api, many):
    made = [await api.post("/api/v1/agents", json={"name": "a", "type": "research"}) for _ in range(many)]
    return [one.json()["id"] for one in made]


async def heard(client, event):
    """The next event of that kind."""
    async with asyncio.timeout(30):
        while True:
            told = json.loads(await client.recv())
            if told["event"] == event:
                return told


async def watchers(stack, replicas, ids, many):
    token = replicas[0].token()
    headers = {"Authorization": f"Bearer {token}"}
    clients = []
    for number in range(many):
        place = f"ws://127.0.0.1:{replicas[number % 2].port}/ws/{ids[number % len(ids)]}"
        client = await stack.enter_async_context(connect(place, additional_headers=headers, proxy=None))
        await heard(client, "snapshot")
        clients.append(client)
    return clients


def api_of(server):
    headers = {"Authorization": f"Bearer {server.token()}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30)


async def test_an_update_reaches_every_watcher_of_both_replicas_within_a_second(replicas, request):
    many, updates = (200, 400) if request.config.getoption("--long") else (24, 40)
    late_s: list[float] = []

    async def listen(client, wanted):
        for _ in range(wanted):
            told = await heard(client, "metrics")
            late_s.append(time.time() - told["data"]["values"]["sent"])

    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(api_of(replicas[0]))
        ids = await agents(api, AGENTS)
        clients = await watchers(stack, replicas, ids, many)
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(listen(client, updates // AGENTS))
            for number in range(updates):
                body = {"sent": time.time(), "step": number}
                recorded = await api.post(f"/api/v1/agents/{ids[number % AGENTS]}/metrics", json=body)
                assert recorded.status_code == 201, recorded.text
                await asyncio.sleep(PACE_S)
    late_s.sort()
    p50, p99 = late_s[len(late_s) // 2], late_s[int(len(late_s) * 0.99)]
    figures = f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"
    print(f"\n{many} watchers, {len(late_s)} events: {figures}")  # noqa: T201  a figure of the long form
    assert len(late_s) == many * updates // AGENTS, "nobody has missed one"
    assert p99 <= 1.0


async def test_watchers_of_both_replicas_hear_again_after_a_restart_of_redis(replicas, redis):
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(api_of(replicas[0]))
        [agent] = await agents(api, 1)
        clients = await watchers(stack, replicas, [agent], 2)
        redis.kill()
        for client in clients:
            await heard(client, "interrupted")
        redis.start()
        for client in clients:
            await heard(client, "resumed")
            await heard(client, "snapshot")
        while (await api.post(f"/api/v1/agents/{agent}/metrics", json={"reward": 1.0})).status_code != 201:
            await asyncio.sleep(0.05)
        for client in clients:
            assert (await heard(client, "metrics"))["data"]["values"] == {"reward": 1.0}
