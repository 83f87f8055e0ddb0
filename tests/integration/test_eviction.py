"""A Redis that evicts is refused by workers, in one sentence; producers may use it."""

import os
import subprocess
import sys

import pytest

from gaelp_tasks.connections import connect, eviction_policy
from gaelp_tasks.settings import Settings
from support.elsewhere import elsewhere
from support.redis_server import RedisServer

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def evicting():
    with RedisServer() as server, server.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.execute_command("ACL", "SETUSER", "hosted", "on", ">p", "~*", "&*", "+@all", "-config")
        yield server


@pytest.mark.parametrize("program", ["gaelp_tasks.cli", "celery"])
@pytest.mark.parametrize("login", ["", "hosted:p@"])
def test_a_worker_does_not_start_on_it_and_says_how_to_mend_it(program, login, evicting):
    env = os.environ | {"GAELP_BROKER_URL": f"redis://{login}127.0.0.1:{evicting.port}/0"}
    more = ["-A", "gaelp_tasks", "worker"] if program == "celery" else ["worker"]
    command = [sys.executable, "-m", program, *more]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    told = " ".join(ended.stderr.split())
    assert "evicts keys when it is full (allkeys-lru)" in told
    assert "maxmemory-policy noeviction" in told
    assert "Traceback" not in told


def test_a_producer_publishes_to_it(evicting):
    with elsewhere(evicting.url) as place:
        assert place.app.send_task("gaelp.invoke_agent", ["Hi"], queue="interactive").id


def test_the_policy_is_told_by_info_where_config_is_forbidden(evicting):
    for login in ("", "hosted:p@"):
        settings = Settings(broker_url=f"redis://{login}127.0.0.1:{evicting.port}/0")
        with connect(settings) as redis:
            assert eviction_policy(redis) == "allkeys-lru"
