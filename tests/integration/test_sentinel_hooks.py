"""One test for each private name that sentinels and a full Redis make us touch."""

import inspect

import redis.asyncio.sentinel
import redis.exceptions
import redis.sentinel
from celery.backends.redis import SentinelBackend
from kombu.transport.redis import SentinelChannel

from gaelp_tasks.connections import NOT_NOW
from gaelp_workers import sentinel, transport


def test_kombu_asks_one_method_for_its_pool():
    """What it does is tested in test_sentinel.py."""
    assert list(inspect.signature(SentinelChannel._sentinel_managed_pool).parameters) == [
        "self",
        "asynchronous",
    ]
    assert hasattr(SentinelChannel, "_connparams")
    assert sentinel.Channel._sentinel_managed_pool is not SentinelChannel._sentinel_managed_pool


def test_a_claim_by_sentinels_is_a_claim():
    """The leases are one worker's, whichever transport it has."""
    assert sentinel.Channel._brpop_start is transport.Channel._brpop_start
    assert issubclass(sentinel.Transport, transport.Transport)
    assert sentinel.Channel.QoS is transport.QoS


def test_redis_py_asks_its_manager_one_question():
    for pool in (redis.sentinel.SentinelConnectionPoolProxy, redis.asyncio.sentinel.SentinelConnectionPool):
        assert "sentinel_manager.discover_master(self.service_name)" in inspect.getsource(
            pool.get_master_address
        )


def test_celery_takes_names_of_errors_after_which_it_tries_again():
    assert all(hasattr(redis.exceptions, name.rpartition(".")[2]) for name in NOT_NOW)
    assert "additional_connection_errors" in inspect.getsource(SentinelBackend.__mro__[1].__init__)
