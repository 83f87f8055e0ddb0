"""An empty Redis, one who claims from it, and a place for beats."""

import pytest

from gaelp_tasks import app
from support.beats import Place
from support.claims import holder


@pytest.fixture
def redis(broker):
    app.redis.flushdb()
    return app.redis


@pytest.fixture
def place(redis, broker, tmp_path):
    made = Place(broker.url, tmp_path)
    yield made
    made.close()
    app.set_current()


@pytest.fixture
def leases(redis):
    return holder("a")
