"""Each alert of the API raised by its fault on a real `gaelp api`, and told to a receiver as the others are.

Waiting times and bounds as in test_alerts.py, which has the other alerts.
"""

from contextlib import ExitStack

import pytest
import requests

from gaelp_tasks.models.caller import Role
from support.api_server import ApiServer
from support.eventually import eventually
from support.needs import needs
from support.ports import free_port
from support.postgres_server import PostgresServer
from support.prometheus import API_ALERTS, Alertmanager, Prometheus, Receiver
from support.redis_server import RedisServer

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    needs("prometheus", "prometheus"),
    needs("prometheus-alertmanager", "prometheus-alertmanager"),
]

ERRORS = 'sum(gaelp_http_requests_total{status=~"5.."})'
#: raised by the same faults: here the API itself tells of the cluster, until it is killed
BESIDE = {"GaelpRedisUnreachable", "GaelpExporterMissing"}


def nodes(api: ApiServer, caller: requests.Session) -> int:
    """The status of a request that has to ask Redis."""
    return caller.get(f"{api.url}/api/v1/nodes", timeout=20).status_code


def test_each_alert_of_the_api_is_raised_by_its_fault_and_somebody_is_told(tmp_path):
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        manager = stack.enter_context(Alertmanager(tmp_path, receiver.port))
        port, ports = free_port(), {"gaelp": [], "gaelp-worker": []}
        # first, for it begins to scrape five seconds after its own beginning
        prometheus = stack.enter_context(
            Prometheus(tmp_path, {**ports, "gaelp-api": [port]}, alertmanager=manager.port)
        )
        redis, sql = stack.enter_context(RedisServer()), stack.enter_context(PostgresServer())
        api = stack.enter_context(
            ApiServer(
                tmp_path,
                GAELP_BROKER_URL=redis.url,
                GAELP_DATABASE_URL=sql.new_database(),
                GAELP_METRICS_ADDRESS=f"127.0.0.1:{port}",
            )
        )
        caller = stack.enter_context(api.session(Role.OPERATOR))

        def raised(*names):
            """They, and none beside them."""
            eventually(lambda: prometheus.firing() == set(names), within_s=30, what=str(names))
            eventually(lambda: receiver.heard("firing").issuperset(names), what=f"told of {names}")

        eventually(lambda: prometheus.ask("gaelp_redis_up == 1 and gaelp_sql_up == 1"), what="all is well")
        assert nodes(api, caller) == 200
        raised()
        receiver.told.clear()  # what was told while the API began
        redis.kill()
        accepted = caller.post(f"{api.url}/api/v1/invocations", json={"prompt": "Hi"}, timeout=20)
        assert accepted.status_code == 202
        assert nodes(api, caller) == 503
        eventually(lambda: prometheus.ask(f"{ERRORS} > 0"), what="a first look")
        assert {nodes(api, caller) for _ in range(6)} == {503}
        raised("GaelpRedisUnreachable", "GaelpRelayBehind", "GaelpApiErrors")
        sql.stop()
        raised("GaelpRedisUnreachable", "GaelpApiErrors", "GaelpSqlUnreachable")
        api.kill()
        raised("GaelpExporterMissing", "GaelpApiDown", "GaelpApiErrors")
    assert receiver.heard("firing") == BESIDE | API_ALERTS
    for alert in receiver.told:
        assert set(alert["annotations"]) == {"summary", "action"}
        assert "<no value>" not in str(alert["annotations"])
