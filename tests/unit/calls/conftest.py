"""A post that keeps what is published, and a request under way."""

from contextlib import nullcontext

import pytest
from celery.backends.cache import CacheBackend
from kombu import Connection, Exchange, Queue

from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.runtime import shared_runtime
from gaelp_tasks.tasks import base as tasks_base
from gaelp_tasks.tasks.invoke import invoke_agent
from support.fakes import FakeBroker, Workbench


@pytest.fixture
def post(monkeypatch):
    """The app of this process publishes into memory; `post()` empties every queue: [(queue, message)]."""
    fake = FakeBroker()
    connection = Connection("memory://")
    monkeypatch.setattr(tasks_base, "_answered", {})
    monkeypatch.setitem(app.__dict__, "redis", fake.sync)
    monkeypatch.setattr(GaelpApp, "backend", CacheBackend(app=app, backend="memory"))
    #: what a worker of somebody else's has declared
    Queue("elsewhere", Exchange("elsewhere"), "elsewhere", channel=connection.default_channel).declare()
    producer = app.amqp.Producer(connection, auto_declare=False)
    monkeypatch.setattr(GaelpApp, "producer_or_acquire", lambda *_, **__: nullcontext(producer))

    def collect():
        channel = connection.default_channel
        known = sorted(channel.queues)
        return [(name, channel._get(name)) for name in known for _ in range(channel._size(name))]

    collect.redis = fake
    yield collect
    collect()
    connection.close()


@pytest.fixture
def request_of():
    """`request_of(kwargs, queue=...)` makes it the request under way."""
    pushed = []

    def push(queue="batch", **fields):
        invoke_agent.push_request(
            id="i",
            args=[],
            called_directly=False,
            is_eager=False,
            delivery_info={"exchange": queue, "routing_key": queue, "priority": 0, "redelivered": False},
            **{"kwargs": {"prompt": "x", "tier": "batch"}, "retries": 0} | fields,
        )
        pushed.append(True)
        return invoke_agent.request

    yield push
    for _ in pushed:
        invoke_agent.pop_request()


@pytest.fixture
def bench(monkeypatch):
    """What runs of this process work with."""
    made = Workbench(shared_runtime().loop, FakeBroker(), ScriptedClient())
    monkeypatch.setattr("gaelp_tasks.tasks.resources.shared_resources", lambda: made.at)
    return made
