"""SOLLOL as we use it: a decision and nothing else. Runs where it is installed: `make sollol`."""

import inspect
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("sollol", reason="needs SOLLOL: make sollol")

from hypothesis import given, settings
from hypothesis import strategies as st
from sollol.intelligence import IntelligentRouter
from sollol.pool import OllamaPool

from gaelp_tasks.clients.routers import Ask, NodeState, Outcome, SollolRouter
from gaelp_tasks.clients.routers.sollol import PINNED, PRIVATE_NAMES, DecidingPool
from gaelp_tasks.errors import SettingsError

ROOT = Path(__file__).parents[2]
MODEL = "m:latest"
A, B, C = URLS = ("http://a:1", "https://b:1/prefix", "http://c:1")

#: Builds a router and has it decide; prints what the process did meanwhile, by Python's own audit.
AUDITED = """
import json, logging, os, sys, threading
did = []
WATCHED = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn")
def watch(event, given):
    if event.startswith(WATCHED):
        at = {"socket.connect": 1, "socket.bind": 1, "subprocess.Popen": 0}.get(event)
        did.append((event, "" if at is None else str(given[at])))
sys.addaudithook(watch)
logging.basicConfig(level=logging.DEBUG)
before = dict(os.environ), sys.stdout.line_buffering, sys.stderr.line_buffering
from gaelp_tasks.clients.routers import Outcome, SollolRouter
router = SollolRouter(["http://127.0.0.1:1", "http://127.0.0.1:2"])
for number in range(200):
    kind = ("chat", "embed")[number % 2]
    lease = router.acquire("m", kind, est_tokens=number * 50, priority=1 + number % 10)
    lease.report(Outcome.DONE if number % 3 else Outcome.FAILED, first_token_s=0.1)
after = dict(os.environ), sys.stdout.line_buffering, sys.stderr.line_buffering
threads = [thread.name for thread in threading.enumerate()]
sys.stdout.write(json.dumps({"did": did, "threads": threads, "same": before == after}))
"""


def pinned_in(text):
    [line] = [line for line in text if line.startswith("sollol==")]
    return line.removeprefix("sollol==")


def test_the_release_is_the_one_that_was_read():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert pinned_in(extras["sollol"]) == PINNED == version("sollol")


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_what_we_replace_and_call_is_there(name):
    assert callable(vars(OllamaPool)[name])
    if name != "_select_node":
        assert name in vars(DecidingPool)


def test_its_constructor_its_stats_and_its_analysis_are_as_we_feed_them():
    wanted = {
        "nodes",
        "register_with_dashboard",
        "enable_ray",
        "enable_dask",
        "enable_gpu_redis",
        "enable_cache",
    }
    assert wanted <= inspect.signature(OllamaPool).parameters.keys()
    assert {"detect_task_type", "estimate_complexity", "select_optimal_node"} <= vars(
        IntelligentRouter
    ).keys()
    [kept] = DecidingPool().stats["node_performance"].values()
    fed = {"host", "available", "active_requests", "latency_ms", "success_rate", "gpu_free_mem", "cpu_load"}
    assert fed <= kept.keys()
    source = inspect.getsource(IntelligentRouter)
    assert all(f'"{name}"' in source for name in fed | {"loaded_models", "priority"})


def test_it_opens_no_socket_starts_no_thread_and_changes_nothing_of_the_process():
    command = [sys.executable, "-c", AUDITED]
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    told = json.loads(done.stdout)
    assert told["threads"] == ["MainThread"]
    assert told["same"]
    harmless = {"socket.__new__", "socket.gethostname"}
    sockets = {(event, what) for event, what in told["did"] if event.startswith("socket.")}
    # urllib3 asks at its import whether there is IPv6
    assert {use for use in sockets if use[0] not in harmless} <= {("socket.bind", "('::1', 0)")}
    programs = {program for event, program in told["did"] if event == "subprocess.Popen"}
    assert programs <= {"nvidia-smi", "rocm-smi", "intel_gpu_top"}  # it asks which GPU this machine has


def test_no_node_is_refused_and_none_is_ever_looked_for(pool):
    with pytest.raises(SettingsError, match="none is looked for"):
        SollolRouter([])
    with pytest.raises(AssertionError, match="never asked to look"):
        pool._auto_discover()


def test_it_learns_no_address(pool):
    pool.decide([NodeState(url="http://user:hidden@node:1"), NodeState(url=A)], Ask(model=MODEL))
    assert "hidden" not in repr(vars(pool))


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            NodeState,
            url=st.sampled_from(URLS),
            slots=st.integers(1, 4),
            in_flight=st.integers(0, 50),
            loaded=st.frozensets(st.sampled_from([MODEL, "other:1b"])),
            latency_s=st.dictionaries(st.just(MODEL), st.floats(0, 1e6)),
            success_rate=st.floats(0, 1),
        ),
        min_size=1,
        unique_by=lambda node: node.url,
    ),
    st.builds(
        Ask,
        model=st.sampled_from([MODEL, ""]),
        kind=st.sampled_from(["chat", "embed", "load"]),
        est_tokens=st.integers(0, 10**9),
        priority=st.integers(1, 10),
    ),
)
def test_it_decides_for_one_of_the_nodes_it_is_given(pool, nodes, ask):
    assert pool.decide(nodes, ask) in nodes


@pytest.fixture(scope="module")
def pool():
    return DecidingPool()


@pytest.fixture
def router():
    made = SollolRouter(URLS, slots=4)
    for url in URLS:
        made.saw(url, models=["m"], loaded=["m"])
    return made


def test_it_is_sollols_intelligent_routing_that_decides(pool, monkeypatch):
    asked = []
    decide = IntelligentRouter.select_optimal_node

    def watched(self, context, hosts):
        asked.append(context)
        return decide(self, context, hosts)

    monkeypatch.setattr(IntelligentRouter, "select_optimal_node", watched)
    pool.decide(
        [NodeState(url=A), NodeState(url=B)], Ask(model=MODEL, kind="embed", est_tokens=3000, priority=9)
    )
    [context] = asked
    assert (context.task_type, context.complexity, context.priority) == ("embedding", "complex", 9)
    assert context.model_preference == MODEL


def test_equal_nodes_share_the_calls(router):
    taken = Counter()
    for _ in range(300):
        lease = router.acquire("m")
        lease.report(Outcome.DONE, first_token_s=0.1)
        taken[lease.node] += 1
    assert taken.keys() == set(URLS)
    assert min(taken.values()) > 50


def test_calls_at_once_go_to_the_node_with_the_fewest(router):
    assert Counter(router.acquire("m").node for _ in range(12)) == dict.fromkeys(URLS, 4)


def test_a_node_with_the_model_in_memory_is_preferred(router):
    for url in (A, C):
        router.saw(url, models=["m"], loaded=["other:1b"])
    assert router.acquire("m").node == B


def test_a_slow_node_is_passed_over(router):
    for url, first_token_s in ((A, 3.0), (B, 3.0), (C, 0.05)):
        lease = router.acquire("m", exclude=frozenset(URLS) - {url})
        lease.report(Outcome.DONE, first_token_s=first_token_s)
    assert router.acquire("m").node == C
