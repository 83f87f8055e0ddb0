"""What is sent together is in Redis all at once, or not known to be; each message as if sent alone."""

import json

import pytest
from kombu.exceptions import OperationalError

from gaelp_tasks.tasks.invoke import invoke_agent
from support.elsewhere import elsewhere
from support.redis_server import RedisServer

pytestmark = pytest.mark.redis

QUEUE = "shop:batch.m\x06\x165"


@pytest.fixture
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture
def there(server):
    with elsewhere(server.url, namespace="shop:") as place:
        yield place.app


def send(there, number, **how):
    task = there.tasks[invoke_agent.name]
    return task.apply_async((f"question {number}",), {"tier": "batch", "model": "m"}, **how)


def shape(message):
    """A message without what differs from one to the next."""
    told = json.loads(message)
    for part, names in (
        ("headers", ("id", "root_id", "origin", "gaelp_published_at")),
        ("properties", ("correlation_id", "reply_to", "delivery_tag")),
    ):
        for name in names:
            told[part].pop(name, None)
    return told


def test_messages_leave_with_the_end_of_the_block_and_are_as_if_sent_alone(there):
    with there.together() as producer:
        for number in range(20):
            send(there, number, producer=producer)
        assert there.redis.keys() == []
    assert there.redis.llen(QUEUE) == 20
    assert there.redis.smembers(there.keys.queues) == {"batch.m"}
    send(there, 0)
    alone, *others = there.redis.lrange(QUEUE, 0, -1)
    assert shape(alone) == shape(others[-1])


def test_a_block_that_fails_sends_nothing(there):
    def fails():
        with there.together() as producer:
            send(there, 0, producer=producer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert there.redis.keys() == []
    send(there, 1)
    assert there.redis.llen(QUEUE) == 1


def test_a_redis_that_has_gone_is_told_at_the_end_and_a_later_block_is_sent(there, server):
    def meanwhile():
        with there.together() as producer:
            send(there, 0, producer=producer)
            server.stop()

    with pytest.raises(OperationalError):
        meanwhile()
    server.start()
    with there.together() as producer:
        send(there, 1, producer=producer)
    assert there.redis.llen(QUEUE) >= 1
