"""What the API tells Prometheus: its requests by route, its tables, the cluster where it is to."""

import asyncio
import re

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from gaelp_tasks.api import exporter
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.metrics import control_plane
from gaelp_tasks.metrics.control_plane import BUCKETS_S, MOST_AGENTS, Durations, Plane
from gaelp_tasks.metrics.page import Collected, new_page, text
from gaelp_tasks.metrics.series import CLUSTER, CONTROL_PLANE, HTTP
from gaelp_tasks.models.caller import Role
from support.api import api_client
from support.ports import free_port

pytestmark = pytest.mark.redis


def parsed(page):
    return {
        (one.name, *(one.labels[name] for name in sorted(one.labels))): one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


async def told(api):
    answer = await api.as_(Role.OPERATOR).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parsed(answer.text)


async def test_requests_are_counted_by_the_template_of_their_route(api):
    before = await told(api)
    for path in ("/api/v1/status", "/api/v1/status", f"/{'x' * 50}"):
        await api.as_().get(path)
    await api.with_headers().get("/api/v1/status")
    await api.as_().request("BREW", "/api/v1/status")
    after = await told(api)
    new = {
        place: number - before.get(place, 0)
        for place, number in after.items()
        if place[0] == "gaelp_http_requests_total" and number != before.get(place)
    }
    name = "gaelp_http_requests_total"
    assert new == {
        (name, "GET", "/api/v1/status", "200"): 2,
        (name, "GET", "other", "404"): 1,
        (name, "GET", "other", "401"): 1,
        (name, "other", "/api/v1/status", "405"): 1,
        (name, "GET", "/metrics", "200"): 1,
    }
    assert after["gaelp_http_request_seconds_count", "GET", "/api/v1/status"] == 2
    assert after["gaelp_http_requests_running",] == 1, "this very one"


async def test_the_page_is_for_operators(api):
    assert (await api.as_(Role.USER).get("/metrics")).status_code == 403
    assert (await api.with_headers().get("/metrics")).status_code == 401


async def test_all_that_is_listed_is_told_and_the_cluster_once_only(broker, api_sql):
    names = {series.name for series in (*HTTP, *CONTROL_PLANE)}
    cluster = {series.name for series in CLUSTER}
    for tells, wanted in ((True, names | cluster), (False, names)):
        async with api_client(api_sql, api_tells_cluster=tells) as api:
            page = (await api.as_(Role.OPERATOR).get("/metrics")).text
            typed = set(re.findall(r"(?m)^# TYPE (\w+) ", page))
            assert {name for name in typed if not name.startswith(("process_", "python_"))} == wanted


async def test_the_listener_needs_no_login_and_a_port_in_use_costs_only_that(broker, api_sql, caplog):
    address = f"127.0.0.1:{free_port()}"
    async with api_client(api_sql, metrics_address=address, api_tells_cluster=False) as api:
        end = api.state.exporter.serve()
        page = await asyncio.to_thread(requests.get, f"http://{address}/metrics", timeout=10)
        assert parsed(page.text)["gaelp_sql_up",] == 1
        assert api.state.exporter.serve() is None
        assert f"No metrics at {address}" in caplog.text
        await asyncio.to_thread(end)


async def test_without_sql_that_is_told_and_nothing_made_up(api, monkeypatch):
    async def away(db):
        raise DatabaseUnavailable("It is away.")

    monkeypatch.setattr(exporter, "plane_now", away)
    page = await told(api)
    assert page["gaelp_sql_up",] == 0
    assert not [place for place in page if place[0] in {"gaelp_agents", "gaelp_relay_waiting"}]


def test_tables_are_told_as_prometheus_reads_them():
    took = Durations(within=(1, *[2] * (len(BUCKETS_S) - 1)), ended=3, sum_s=12.5)
    held = {(agent, "cpu"): 2.0 for agent in range(1, MOST_AGENTS + 3)}
    plane = Plane({"running": 2}, {"completed": 3}, {"completed": took}, held, 4, 1.5)
    page = new_page()
    Collected(CONTROL_PLANE, lambda: control_plane.samples(plane), page)
    found = parsed(text(page))
    assert found["gaelp_agents", "running"] == 2
    assert found["agent_jobs_total", "completed"] == 3
    assert found["agent_job_duration_seconds_bucket", "1.0", "completed"] == 1
    assert found["agent_job_duration_seconds_bucket", "+Inf", "completed"] == 3
    assert found["agent_job_duration_seconds_sum", "completed"] == 12.5
    assert found["agent_resource_usage", "other", "cpu"] == 4.0
    assert found["agent_resource_usage", str(MOST_AGENTS + 2), "cpu"] == 2.0
    assert (found["gaelp_relay_waiting",], found["gaelp_relay_oldest_seconds",]) == (4, 1.5)
