"""rediss:// all along, with a CA and with client certificates; wrong ones in one sentence."""

import os
import subprocess
import sys

import pytest

from gaelp_tasks.connections import connect, worded
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_workers.leases import TOLD
from support.elsewhere import elsewhere
from support.eventually import eventually
from support.redis_server import RedisServer
from support.tls_front import Authority, TlsFront
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine]

SHORT = {"num_predict": 5, "seed": 5}
ENDLESS = {"num_predict": 1_000_000}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def front(server, authority):
    with TlsFront(server.port, authority.server()) as running:
        yield running


@pytest.fixture(scope="module")
def asking(server, authority):
    with TlsFront(server.port, authority.server(asks=True)) as running:
        yield running


def trusting(port: int, authority: Authority) -> str:
    return f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca_file}"


def known(port: int, authority: Authority) -> str:
    return f"{trusting(port, authority)}&ssl_certfile={authority.cert_file}&ssl_keyfile={authority.key_file}"


def doctor(url: str) -> str:
    env = os.environ | {"GAELP_BROKER_URL": url, "COLUMNS": "400"}
    command = [sys.executable, "-m", "gaelp_tasks.cli", "doctor"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.parametrize("way", ["ca", "client certificate"])
def test_the_whole_story_goes_over_tls(way, front, asking, authority, node, tmp_path):
    url = trusting(front.port, authority) if way == "ca" else known(asking.port, authority)
    with elsewhere(url) as place:
        place.app.redis.flushdb()
        with WorkerProcess(tmp_path, at=place.app, GAELP_BROKER_URL=url, GAELP_OLLAMA_NODES=node) as worker:
            handle = place.invoke("Hi", options=SHORT)
            assert "".join(handle.stream(timeout=20)) == handle.get(timeout=20)["text"]
            endless = place.invoke("Never stop", options=ENDLESS)
            next(endless.stream(timeout=20))
            alive = place.app.control.inspect([worker.name], timeout=5).ping()
            assert alive == {worker.name: {"ok": "pong"}}
            endless.cancel()
            assert endless.get(timeout=20)["stop_reason"] == "cancelled"
            eventually(lambda: place.app.redis.pubsub_numsub(TOLD)[0][1] == 1)
            eventually(lambda: not place.app.redis.hlen(place.app.keys.unacked))
            assert f"worker {worker.name}" in doctor(url)


@pytest.mark.parametrize(
    "way", ["unknown CA", "other host", "no client certificate", "no such file", "plain port"]
)
def test_a_wrong_certificate_is_one_clear_sentence(way, front, asking, authority, server, tmp_path):
    with TlsFront(server.port, authority.server("other.test")) as other:
        url, told = {
            "unknown CA": (
                f"rediss://127.0.0.1:{front.port}/0",
                "not trusted .*ssl_ca_certs= in GAELP_BROKER_URL",
            ),
            "other host": (trusting(other.port, authority), "not trusted .*certificate for this host name"),
            "no client certificate": (trusting(asking.port, authority), "ssl_certfile= and ssl_keyfile="),
            "no such file": (
                f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={tmp_path}/none",
                "cannot be read",
            ),
            "plain port": (trusting(server.port, authority), "check that this port speaks TLS"),
        }[way]
        with elsewhere(url) as place:
            settings = place.app.settings
            with (
                pytest.raises(BrokerUnavailable, match=told) as caught,
                worded(settings),
                connect(settings, answer_s=2.0) as redis,
            ):
                redis.ping()
            assert str(caught.value).count(". ") == 0
            if way == "unknown CA":
                assert "its certificate is not trusted" in doctor(url)


def test_a_worker_of_a_server_that_it_cannot_trust_says_so_and_ends(front):
    env = os.environ | {"GAELP_BROKER_URL": f"rediss://127.0.0.1:{front.port}/0"}
    command = [sys.executable, "-m", "gaelp_tasks.cli", "worker"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "its certificate is not trusted" in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
