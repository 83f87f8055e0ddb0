"""Names of our keys, and what redis-py says in our words."""

import pytest
import redis

from gaelp_tasks.connections import connect, connect_async, lost, unavailable, worded
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.settings import Settings
from support.fakes import FakeBroker

SETTINGS = Settings(broker_url="redis://me:SECRET@host:6379/0")


def test_our_keys_are_apart_from_each_other_and_from_celerys():
    keys = Keys()
    names = [keys.stream("i"), keys.claims("i"), keys.cancel("i"), keys.node("i"), keys.cancellations]
    assert len(set(names)) == len(names)
    assert all(name.startswith("gaelp:") for name in names)
    assert keys.queue("batch") == "batch"


def test_a_namespace_is_before_every_key():
    keys = Keys("two.")
    names = [keys.stream("i"), keys.claims("i"), keys.cancel("i"), keys.node("i"), keys.cancellations]
    assert all(name.startswith("two.gaelp:") for name in names)
    assert keys.queue("batch") == "two.batch"


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("no"),
        redis.TimeoutError("slow"),
        redis.ResponseError("OOM"),
        redis.ReadOnlyError("replica"),
        OSError("no route"),
        TimeoutError("slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_redis_does_is_a_broker_unavailable_with_advice(error):
    with pytest.raises(BrokerUnavailable, match="GAELP_BROKER_URL") as caught, worded(SETTINGS):
        raise error
    assert caught.value.__cause__ is error
    assert "SECRET" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_refused_password_is_told_apart():
    with pytest.raises(BrokerUnavailable, match="password") as caught, worded(SETTINGS):
        raise redis.AuthenticationError("WRONGPASS")
    assert "SECRET" not in str(caught.value)


def test_what_is_not_redis_passes_as_it_is():
    with pytest.raises(KeyError), worded(SETTINGS):
        raise KeyError("x")


def test_an_answer_with_an_error_is_unavailable_but_not_lost():
    assert not issubclass(redis.ResponseError, lost)
    assert issubclass(redis.ResponseError, unavailable)
    assert issubclass(redis.ConnectionError, lost)


@pytest.mark.parametrize("make", [connect, connect_async])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", {"host": "h", "port": 1, "db": 2}),
        ("redis+socket:///run/r.sock?db=3", {"path": "/run/r.sock", "db": 3}),
    ],
)
def test_a_client_is_made_without_connecting(make, url, expected):
    settings = Settings(broker_url=url, connect_timeout_s=1.5)
    how = make(settings).connection_pool.connection_kwargs
    assert expected.items() <= how.items()
    assert how["decode_responses"] is True
    assert how["socket_connect_timeout"] == 1.5


def test_a_fake_that_goes_away_behaves_as_a_server_that_is_gone():
    broker = FakeBroker()
    broker.goes_away()
    with pytest.raises(redis.ConnectionError):
        broker.sync.ping()
    broker.comes_back()
    assert broker.sync.ping()
