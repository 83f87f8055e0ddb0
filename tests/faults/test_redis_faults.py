"""Redis full, killed, frozen, cut off, failed over: nothing lost, nothing accepted twice, workers live on.

Short forms, for every commit; `pytest tests/faults/test_redis_faults.py --long`: see docs/redis.md.
"""

import time
from contextlib import suppress

import pytest
from kombu.exceptions import OperationalError

from faults.load import lasting, load
from support.eventually import eventually
from support.redis_server import RedisServer
from support.sentinel_servers import SentinelServers

pytestmark = [pytest.mark.redis, pytest.mark.slow]

RESUMED_S = 2.0


@pytest.fixture(scope="module")
def long(request):
    return request.config.getoption("--long")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two workers behind a proxy each, which live through all tests of this module."""
    with RedisServer() as server:
        with server.client() as client:
            client.config_set("appendfsync", "always")  # or a killed Redis may forget its last second
        with load(server, server.url, tmp_path_factory.mktemp("faults"), proxies=True) as running:
            yield running


def proxies(work):
    return [worker.proxy for worker in work.cluster.workers]


def frozen(work, for_s):
    work.cluster.server.freeze()
    at = lasting(for_s)
    work.cluster.server.thaw()
    return at


def killed(work, for_s):
    work.cluster.server.kill()
    lasting(for_s)
    work.cluster.server.start()
    return time.monotonic()


def cut_off(work, for_s):
    for proxy in proxies(work):
        proxy.silence()
    at = lasting(for_s)
    for proxy in proxies(work):
        proxy.resume()
    return at


def cut_off_and_reset(work, for_s):
    for proxy in proxies(work):
        proxy.silence()
    at = lasting(for_s)
    for proxy in proxies(work):
        proxy.reset()
    return at


@pytest.mark.parametrize(
    ("strike", "short_s", "long_s"),
    [(frozen, 6, 20), (killed, 2, 20), (cut_off, 6, 30), (cut_off_and_reset, 4, 30)],
    ids=["frozen", "killed", "cut-off", "cut-off-and-reset"],
)
def test_work_goes_on_within_two_seconds_of_its_return(work, long, strike, short_s, long_s):
    work.publish(4, seconds=2.0)  # some are in mid-stream
    work.under_way(work.publish(50), 6)
    returned = strike(work, long_s if long else short_s)
    resumed_s = work.starts_after(returned)
    work.drain()
    eventually(work.settled, what="every connection is back, and nothing is held")
    print(f"resumed after {resumed_s:.2f} s, {len(work.again())} started again")  # noqa: T201  for -s
    assert resumed_s <= RESUMED_S


def test_a_full_redis_refuses_publishers_clearly_and_stops_no_worker(work, long):
    with work.cluster.server.client() as redis:
        work.publish(4, seconds=2.0)
        work.under_way(work.publish(40), 6)
        redis.config_set("maxmemory", 1)
        try:
            asked = len(work.acknowledged)
            with pytest.raises(OperationalError, match="it is full: raise its maxmemory") as refused:
                work.publish(1)
            assert "\n" not in str(refused.value)
            lasting(20 if long else 4)
            assert work.cluster.quit == []
        finally:
            redis.config_set("maxmemory", 0)
        roomy = time.monotonic()
    resumed_s = work.starts_after(roomy)
    assert len(work.acknowledged) == asked, "what was refused was not accepted"
    work.publish(4)
    work.drain()
    eventually(work.settled)
    print(f"resumed after {resumed_s:.2f} s, {len(work.again())} started again")  # noqa: T201  for -s
    assert resumed_s <= RESUMED_S


def test_a_connection_that_drops_starts_no_running_work_again(work):
    before = work.again()
    work.under_way(work.publish(8, seconds=1.0), 8)
    with work.cluster.server.client() as redis:
        for kind in ("normal", "pubsub"):
            redis.client_kill_filter(_type=kind, skipme=True)
    work.drain()
    eventually(work.settled)
    assert work.again() == before


def test_a_failover_loses_nothing_that_was_replicated(tmp_path):
    """What no replica had yet is gone with the master: replication is asynchronous (docs/redis.md)."""
    with SentinelServers(3) as servers, load(servers, servers.url, tmp_path) as work:
        work.publish(4, seconds=2.0)
        work.under_way(work.publish(80), 6)
        servers.quiet()
        servers.fail_over()
        promoted = time.monotonic()
        resumed_s = work.starts_after(promoted)
        with suppress(OperationalError):
            work.publish(4)
        work.drain()
        eventually(work.settled)
        print(f"resumed after {resumed_s:.2f} s, {len(work.again())} started again")  # noqa: T201  for -s
        assert resumed_s <= RESUMED_S
