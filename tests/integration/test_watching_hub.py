"""Many watchers, one reader of Redis: what they hear, what they lose, and what they are told of it."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from gaelp_tasks.api.watching.hub import Hub
from gaelp_tasks.api.watching.mailbox import Mailbox
from gaelp_tasks.connections import connect_async
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.services.telling import tell
from gaelp_tasks.settings import Settings
from support.redis_server import RedisServer

pytestmark = pytest.mark.redis

KEYS = Keys("")


@pytest.fixture
def server():
    with RedisServer() as made:
        yield made


def event(agent_id=1, **data):
    return AgentEvent(event=EventKind.METRICS, agent_id=agent_id, data=data)


@asynccontextmanager
async def hub(server):
    made = Hub(Settings(broker_url=server.url, connect_timeout_s=1.0))
    running = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(20):
            await made.ready()
            yield made
    finally:
        running.cancel()
        await asyncio.wait([running])


async def heard(mailbox):
    """Everything up to the next look: (event, data) of each."""
    taken = await mailbox.take()
    return [(told["event"], told.get("data")) for told in map(json.loads, taken.texts)]


async def said(server, *events):
    async with connect_async(Settings(broker_url=server.url)) as redis:
        for one in events:
            await tell(redis, KEYS, one)


async def channels(server):
    async with connect_async(Settings(broker_url=server.url)) as redis:
        return dict(await redis.pubsub_numsub(KEYS.told(1), KEYS.told(2)))


async def test_each_watcher_hears_of_its_agent_only_and_redis_is_asked_once(server):
    async with hub(server) as at, at.watching(1) as one, at.watching(1) as other, at.watching(2) as two:
        await said(server, event(1, step=1))
        await said(server, event(2, step=2))
        assert await heard(one) == await heard(other) == [("metrics", {"step": 1})]
        assert await heard(two) == [("metrics", {"step": 2})]
        assert await channels(server) == {KEYS.told(1): 1, KEYS.told(2): 1}


async def test_an_agent_whom_nobody_watches_any_more_is_not_listened_to(server):
    async with hub(server) as at, at.watching(2):
        async with at.watching(1), at.watching(1):
            pass
        while (await channels(server))[KEYS.told(1)]:
            await asyncio.sleep(0.01)
        async with at.watching(1) as again:
            await said(server, event(1, step=3))
            assert await heard(again) == [("metrics", {"step": 3})]
        assert len(at) == 1


async def test_a_restart_of_redis_is_told_and_watchers_hear_again(server):
    async with hub(server) as at, at.watching(1) as mailbox:
        server.kill()
        assert await heard(mailbox) == [("interrupted", None)]
        async with at.watching(1) as late:
            assert await heard(late) == [("interrupted", None)]
            server.start()
            for one in (mailbox, late):
                taken = await one.take()
                assert [json.loads(text)["event"] for text in taken.texts] == ["resumed"]
                assert taken.again
        await said(server, event(1, step=4))
        assert await heard(mailbox) == [("metrics", {"step": 4})]


async def test_a_connection_that_redis_drops_is_told_too(server):
    async with hub(server) as at, at.watching(1) as mailbox:
        async with connect_async(Settings(broker_url=server.url)) as redis:
            await redis.client_kill_filter(_type="pubsub")
        told = []
        while "resumed" not in told:
            told += [kind for kind, _ in await heard(mailbox)]
        await said(server, event(1, step=5))
        assert await heard(mailbox) == [("metrics", {"step": 5})]


async def test_a_mailbox_loses_its_oldest_by_number_and_by_size_and_says_how_many():
    mailbox = Mailbox(most_events=3, most_bytes=10)
    for text in "abcde":
        mailbox.put(text)
    assert await mailbox.take() == (2, ("c", "d", "e"), False, False)
    for text in ("12345", "67890", "x"):
        mailbox.put(text)
    assert await mailbox.take() == (1, ("67890", "x"), False, False)
    mailbox.tell_again()
    mailbox.close()
    assert await mailbox.take() == (0, (), True, True)
