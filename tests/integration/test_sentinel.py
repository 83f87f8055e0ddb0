"""sentinel:// all along: producer, worker, streams, cancel, doorbell."""

import pytest

from support.elsewhere import elsewhere
from support.eventually import eventually
from support.sentinel_servers import SentinelServers
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine]

SHORT = {"num_predict": 5, "seed": 5}
ENDLESS = {"num_predict": 1_000_000}


@pytest.fixture(scope="module")
def servers():
    with SentinelServers(3, password="of-sentinels") as running:  # noqa: S106  for this test
        yield running


@pytest.fixture
def place(servers):
    with elsewhere(servers.url) as there:
        yield there


@pytest.fixture
def worker(place, node, tmp_path):
    with WorkerProcess(
        tmp_path, at=place.app, GAELP_BROKER_URL=place.url, GAELP_OLLAMA_NODES=node, mingle=True
    ) as running:
        yield running


def test_the_whole_story_goes_by_the_sentinels(place, worker):
    handle = place.invoke("Hi", options=SHORT)
    assert "".join(handle.stream(timeout=20)) == handle.get(timeout=20)["text"]
    endless = place.invoke("Never stop", options=ENDLESS)
    next(endless.stream(timeout=20))
    assert place.app.control.inspect([worker.name], timeout=5).ping() == {worker.name: {"ok": "pong"}}
    endless.cancel()
    assert endless.get(timeout=20)["stop_reason"] == "cancelled"
    eventually(lambda: not place.app.redis.hlen(place.app.keys.unacked))
    assert "claim-sentinel://" in worker.log()
