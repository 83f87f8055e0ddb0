"""An empty Redis, and one who claims from it."""

import pytest

from gaelp_tasks import app
from support.claims import holder


@pytest.fixture
def redis(broker):
    app.redis.flushdb()
    return app.redis


@pytest.fixture
def leases(redis):
    return holder("a")
