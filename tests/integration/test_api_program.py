"""`gaelp api` as a program: it serves, and ends in good order."""

import asyncio
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from gaelp_tasks.api.application import _running
from gaelp_tasks.models.caller import Role
from support.api_server import ApiServer
from support.eventually import eventually

pytestmark = pytest.mark.redis


def test_it_serves_and_its_metrics_need_no_token(api_server):
    assert requests.get(f"{api_server.url}/api/v1/status", timeout=5).status_code == 401
    with api_server.session() as ann:
        assert ann.get(f"{api_server.url}/api/v1/status", timeout=5).status_code == 200
    assert "gaelp_redis_up 1.0" in requests.get(api_server.metrics_url, timeout=5).text


def test_a_taken_address_of_metrics_costs_only_those(tmp_path, broker):
    server = ApiServer(tmp_path)
    with socket.create_server(("127.0.0.1", server.metrics_port)), server:
        assert "GAELP_METRICS_ADDRESS" in server.log()
        with server.session(Role.OPERATOR) as ann:
            assert "gaelp_redis_up 1.0" in ann.get(f"{server.url}/metrics", timeout=5).text


def test_without_its_database_it_ends_with_a_sentence(tmp_path, broker):
    server = ApiServer(tmp_path, GAELP_DATABASE_URL="postgresql://ann:hush@127.0.0.1:1/gaelp")
    with pytest.raises(AssertionError, match="the API ended"):
        server.start()
    assert server.process.returncode == 1
    [line] = server.log().splitlines()
    assert line.startswith("gaelp: The database postgresql://ann:***@127.0.0.1:1/gaelp does not serve us")


def test_it_answers_what_it_has_begun_and_ends(tmp_path, broker):
    with ApiServer(tmp_path) as server, ThreadPoolExecutor() as pool, server.session() as ann:
        broker.freeze()
        try:
            asked = pool.submit(ann.get, f"{server.url}/health", timeout=30)  # takes two seconds now
            eventually(lambda: connections_to(server) > 0, what="it is asked")
            server.process.send_signal(signal.SIGTERM)
            assert asked.result().status_code == 503
        finally:
            broker.thaw()
        assert server.process.wait(timeout=20) == 0
        assert "Traceback" not in server.log()


async def test_a_work_that_misses_its_cancellation_holds_up_no_end():
    missed = asyncio.Event()

    async def work(_):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            missed.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(30):
        async with _running(None, [work]):
            await asyncio.sleep(0)
    assert missed.is_set()


def connections_to(server):
    """How many are established."""
    wanted = f":{server.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(wanted) and row[3] == "01" for row in rows)
