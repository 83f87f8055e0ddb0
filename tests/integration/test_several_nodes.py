"""One real worker with two real model servers behind it: both work, one dies, it comes back."""

import asyncio
import json
import signal
from collections import Counter

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.cli import checks
from gaelp_tasks.cli.app import cli
from gaelp_tasks.overview import describe, live_nodes, of_tiers, runners, waiting_in
from support.eventually import eventually
from support.model_server import CHAT_MODEL, ROOMY, ModelServer, slow_model
from support.scripted_server import ScriptedServer

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

ENDLESS = {"num_predict": 100_000}
SHORT = {"num_predict": 20}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two model servers with two slots each; their model is slow, so that an endless run outlives a test."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    with (
        ModelServer(
            folders[0], models={CHAT_MODEL: slow_model(folders[0])}, num_parallel=2, num_ctx=ROOMY
        ) as first,
        ModelServer(
            folders[1], models={CHAT_MODEL: slow_model(folders[1])}, num_parallel=2, num_ctx=ROOMY
        ) as second,
    ):
        yield first, second


@pytest.fixture
def worker(start_worker, servers):
    urls = ",".join(server.url for server in servers)
    return start_worker(
        GAELP_OLLAMA_NODES=urls, GAELP_NUM_PARALLEL="2", GAELP_RETRY_BASE_S="0.05", GAELP_SNOOZE_S="0.05"
    )


@pytest.fixture
def endless(worker):
    """`endless(count)` starts runs that end only when the test does."""
    handles = []

    def start(count):
        handles.extend(invoke_agent.delay("Never stop", options=ENDLESS) for _ in range(count))
        return handles[-count:]

    yield start
    for handle in handles:
        handle.cancel()
    for handle in handles:
        handle.get(timeout=30)


def busy(server):
    return server.slots()["busy"]


def told(server):
    """What the worker announces of this server."""
    return next(node for node in live_nodes(app) if node.url == server.url)


def test_runs_land_on_both_and_each_node_says_who_runs_there(worker, servers, endless):
    first, second = servers
    runs = {handle.id for handle in endless(4)}
    eventually(lambda: busy(first) == busy(second) == 2, what="two runs on each")
    eventually(lambda: len(told(first).running) == len(told(second).running) == 2, what="both tell theirs")
    nodes = live_nodes(app)
    assert [node.worker for node in nodes] == [worker.name] * 2
    assert [node.slots for node in nodes] == [2, 2]
    assert sorted((*nodes[0].running, *nodes[1].running)) == sorted(runs)
    assert {describe(app, name).node for name in told(first).running} == {first.url}
    eventually(lambda: all(node.tokens_per_s > 0 for node in live_nodes(app)), what="both count tokens")
    places = Counter(run.node for run in runners(app, live_nodes(app)))
    assert places == {first.url: 2, second.url: 2}
    assert all(run.tokens > 0 for run in runners(app, live_nodes(app)))
    seen = json.loads(CliRunner().invoke(cli, ["top", "--json"]).stdout)
    assert {run["id"] for run in seen["running"]} == runs
    assert {node["url"] for node in seen["nodes"]} == {first.url, second.url}
    shown = CliRunner().invoke(cli, ["nodes", "list"]).stdout
    assert first.url in shown
    assert second.url in shown


def test_a_result_names_the_node_that_answered(worker, servers):
    handles = [invoke_agent.delay("Hi", options=SHORT) for _ in range(8)]
    nodes = Counter(handle.get(timeout=30)["node"] for handle in handles)
    assert set(nodes) <= {server.url for server in servers}
    assert sum(nodes.values()) == 8


def test_one_dies_the_other_takes_all_and_it_comes_back(worker, servers, endless):
    first, second = servers
    first.stop(signal.SIGKILL)
    eventually(
        lambda: (seen := told_of(first.url)) is not None and not seen.healthy,
        what="the worker says that it is gone",
    )
    assert first.url in told(first).trouble
    assert told(second).healthy
    three = endless(3)
    eventually(
        lambda: len(told(second).running) == 2 and of_tiers(waiting_in(app))["interactive"] == 1,
        what="it fills",
    )
    assert second.slots()["waiting"] == 0, "the third waits in the queue, where another worker could take it"
    for handle in three:
        handle.cancel()
    handles = [invoke_agent.delay("Hi", options=SHORT) for _ in range(6)]
    assert {handle.get(timeout=30)["node"] for handle in handles} == {second.url}
    first.start_again()
    eventually(lambda: told(first).healthy, what="it is well again")
    assert told(first).trouble == ""

    def back():
        asked = [invoke_agent.delay("Hi", options=SHORT) for _ in range(4)]
        return first.url in {handle.get(timeout=30)["node"] for handle in asked}

    eventually(back, what="it gets runs again")


def told_of(url):
    return next((node for node in live_nodes(app) if node.url == url), None)


async def test_a_server_that_looks_well_while_its_model_does_not_answer_is_told_until_it_does(start_worker):
    """Its lists are in good health: only the model's own answer tells."""
    async with ScriptedServer() as server:
        await asyncio.to_thread(
            start_worker,
            GAELP_OLLAMA_NODES=server.url,
            GAELP_PROBE_INTERVAL_S="0.3",
            GAELP_DEFAULT_MODEL="tiny",
        )
        await asyncio.to_thread(invoke_agent.delay("Hi").get, timeout=20)

        async def break_down(request, reply):
            reply.whole({"error": "out of order"}, 500)

        server.on("/api/chat", break_down)
        await asyncio.to_thread(
            eventually, lambda: "out of order" in told_of(server.url).trouble, what="the trouble is told"
        )
        assert not told_of(server.url).healthy
        assert told_of(server.url).loaded
        question = server.asked("/api/chat")[-1].json()
        assert question["options"]["num_predict"] == 1
        left_s = float(str(question["keep_alive"]).rstrip("s"))
        assert 0 < left_s < app.settings.keep_alive_s, "a question keeps no model in memory"
        assert any("out of order" in check.advice for check in checks.workers(app))
        assert "out of order" in CliRunner().invoke(cli, ["status"]).stdout
        server.on("/api/chat", server._healthy)
        await asyncio.to_thread(eventually, lambda: told_of(server.url).healthy, what="it is well again")
        assert told_of(server.url).trouble == ""
