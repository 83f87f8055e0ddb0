"""Real memory in a cgroup, in the short form: the formula is killed, we are not, and slots follow memory.

The long form and the figures: docs/controller.md.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from faults.memory.check import BACK_S, broken, check
from faults.memory.naive import naively
from faults.memory.node import node
from faults.memory.ours import announced, ask_for, ours, worker_of
from faults.memory.record import Moment, Record
from faults.memory.trace import LIMIT_BYTES, NUM_PARALLEL, RESERVE_BYTES, Ask, trace
from gaelp_tasks.celery_app import app
from gaelp_tasks.cli import top
from support.cgroups import MemoryGroup
from support.eventually import eventually
from support.exporter import Exporter
from support.needs import needs
from support.paging_server import answer
from support.ports import free_port
from support.prometheus import Alertmanager, Prometheus, Receiver

MIB = 1024**2
SEEDS = (0,)  #: of the short form
#: within which memory is back, and slots follow memory that somebody takes; CI runs other suites beside this
CUT_S = 10.0 if os.environ.get("CI") else 2.0
BELIEVED_S = (
    30.0  #: within which memory that was given back is believed in: it is with a time constant of 8 s
)


@pytest.fixture(scope="module")
def cgroups():
    try:
        with MemoryGroup(64 * MIB) as group:
            assert group.kills == 0
    except OSError as error:
        pytest.skip(f"this machine lets no memory cgroup be made: {error}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_formula_is_killed_for_memory(seed, cgroups, tmp_path):
    lived = trace(seed)
    with node(lived, tmp_path) as place:
        assert naively(lived, place)


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
def test_on_the_same_traces_nothing_of_ours_is_killed_and_everything_is_answered(
    seed, cgroups, broker, tmp_path
):
    lived = trace(seed)
    with node(lived, tmp_path) as place:
        record = ours(lived, place, tmp_path)
    found = check(record)
    assert broken(found, within_s=CUT_S) == []
    assert found.unloads, "there was something to decide"


@pytest.mark.redis
@pytest.mark.timeout(120)
def test_who_takes_memory_cuts_the_slots_and_giving_it_back_restores_them_as_top_shows(
    cgroups, broker, tmp_path
):
    lived = trace(0)
    model = min(lived.models, key=lambda model: model.true_bytes)
    app.redis.flushdb()
    with node(replace(lived, models=(model,)), tmp_path) as place, worker_of(place, tmp_path) as worker:
        eventually(announced(worker, place), within_s=30, what="the node is announced by its cgroup")
        ask = Ask(id="first", at_s=0.0, model=model.name, tier="interactive", tokens=3, pace_s=0.01)
        ask_for(ask).get(timeout=30)
        eventually(lambda: seen_slots(place) == NUM_PARALLEL, what="its slots are announced")

        place.neighbour.do(f"take {place.group.free_bytes - RESERVE_BYTES // 2} 0")
        began = time.monotonic()
        eventually(lambda: seen_slots(place) == 0, what="slots are cut")
        assert time.monotonic() - began < CUT_S
        shown = told_by_top(place)
        assert (shown["slots"], shown["loaded"]) == (0, [])
        eventually(
            lambda: told_by_top(place)["memory"]["free_bytes"] < LIMIT_BYTES // 2,
            what="top shows the memory that is left",
        )

        place.neighbour.do("give")
        eventually(
            lambda: seen_slots(place) == NUM_PARALLEL, within_s=BELIEVED_S, what="slots are there again"
        )
        assert told_by_top(place)["slots"] == NUM_PARALLEL
        assert place.group.kills == 0


@pytest.mark.redis
@pytest.mark.timeout(180)
@needs("prometheus", "prometheus")
@needs("prometheus-alertmanager", "prometheus-alertmanager")
def test_a_neighbour_that_takes_memory_raises_the_alerts_of_it(cgroups, broker, tmp_path):
    lived = trace(0)
    model = min(lived.models, key=lambda model: model.true_bytes)
    app.redis.flushdb()
    port = free_port()
    exporter = Exporter(tmp_path, broker.url)
    with (
        node(replace(lived, models=(model,)), tmp_path) as place,
        worker_of(place, tmp_path, GAELP_METRICS_PORT=str(port)) as worker,
        exporter,
        Receiver() as receiver,
        Alertmanager(tmp_path, receiver.port) as manager,
        Prometheus(
            tmp_path,
            {"gaelp": [exporter.port], "gaelp-worker": [port], "gaelp-api": []},
            alertmanager=manager.port,
        ) as prometheus,
    ):
        eventually(announced(worker, place), within_s=30, what="the node is announced by its cgroup")
        run = ask_for(Ask(id="run", at_s=0, model=model.name, tier="background", tokens=600, pace_s=0.05))
        next(run.stream(timeout=30))
        eventually(lambda: prometheus.ask("gaelp_node_open == 1"), within_s=20, what="a first look")
        place.neighbour.do(f"take {place.group.free_bytes - RESERVE_BYTES // 2} 0")
        eventually(lambda: seen_slots(place) == 0, within_s=30, what="its model had to go")
        place.neighbour.do(f"take {place.group.free_bytes - RESERVE_BYTES // 2} 0")
        raised = {"GaelpEvictions", "GaelpMemoryUnderFloor"}
        eventually(lambda: receiver.heard("firing") >= raised, within_s=30, what="somebody was told of both")
        place.neighbour.do("give")
        place.neighbour.do("give")
        assert run.get(timeout=90)["text"] == answer(600)
        assert place.group.kills == 0


def seen_slots(place):
    """As `gaelp top` sees them."""
    return next((seen.slots for seen in top.look().nodes if seen.url == place.url), None)


def told_by_top(place):
    command = [sys.executable, "-m", "gaelp_tasks.cli", "top", "--once", "--json"]
    env = {"GAELP_BROKER_URL": app.settings.broker_url}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    (shown,) = [told for told in json.loads(ended.stdout)["nodes"] if told["url"] == place.url]
    return shown


# --- the judge sees what is wrong ---

GOOD = Record(
    seed=1,
    kills=0,
    expected={"a": " w0 w1", "b": " w0"},
    answers={
        "a": {"text": "w0 w1", "stop_reason": "stop", "attempts": 1},
        "b": {"text": "w0", "stop_reason": "stop", "attempts": 1},
    },
    failures={},
    journal=[
        {"at": 1.0, "event": "loading", "model": "x"},
        {"at": 1.0, "event": "loading", "model": "y"},
        {"at": 2.0, "event": "loaded", "model": "x"},
        {"at": 2.0, "event": "loaded", "model": "y"},
        {"at": 2.0, "event": "chat", "model": "x", "id": "a", "tier": "interactive"},
        {"at": 2.0, "event": "chat", "model": "y", "id": "b", "tier": "background"},
        {"at": 4.0, "event": "left", "model": "y", "id": "b"},
        {"at": 4.1, "event": "asked", "model": "y"},
        {"at": 4.2, "event": "unloaded", "model": "y"},
        {"at": 9.0, "event": "end", "model": "x", "id": "a"},
    ],
    moments=[Moment(1.0, LIMIT_BYTES), Moment(2.0, RESERVE_BYTES - 1), Moment(3.0, RESERVE_BYTES)],
    decisions=[{"decision": "unload", "model": "y", "reason": "eviction", "cut": ["b"]}],
    took_s=9.0,
)


def moved(record, **at):
    """The same with other times of y's way out."""
    journal = [
        {**noted, "at": at.get(noted["event"], noted["at"])} if noted["model"] == "y" else noted
        for noted in record.journal
    ]
    return replace(record, journal=journal)


def other_way_round(record):
    """The interactive run's model went, and the background one's stayed."""
    swap = {"interactive": "background", "background": "interactive"}
    journal = [
        {**noted, "tier": swap[noted["tier"]]} if "tier" in noted else noted for noted in record.journal
    ]
    return replace(record, journal=journal)


def test_the_judge_finds_nothing_wrong_with_a_good_run():
    found = check(GOOD)
    assert (broken(found), found.evicted, found.unloads, found.loads) == ([], {"b"}, 1, 2)
    assert found.spared == 1, "y went, and x with an interactive run stayed"
    assert found.slowest_back_s == pytest.approx(0.2)
    assert found.longest_below_s == 0.0


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (replace(GOOD, kills=1), "the kernel has killed 1"),
        (
            replace(GOOD, journal=[*GOOD.journal, {"at": 9.5, "event": "died", "model": "x"}]),
            "1 runners died",
        ),
        (replace(GOOD, answers={"a": GOOD.answers["a"]}), "b: no answer"),
        (
            replace(GOOD, answers=GOOD.answers | {"a": {**GOOD.answers["a"], "text": "w0 w0 w1"}}),
            "a: 3 of 2 tokens",
        ),
        (
            replace(GOOD, answers=GOOD.answers | {"a": {**GOOD.answers["a"], "attempts": 2}}),
            "attempt was spent: a",
        ),
        (other_way_round(GOOD), "y with b went, and x stayed"),
        (moved(GOOD, unloaded=4.1 + BACK_S), "memory was back after 2.10 s"),
        (
            replace(GOOD, moments=[Moment(1.0, 0), Moment(2.0, 0), Moment(3.5, 0)]),
            "below the reserve for 2.50 s",
        ),
    ],
)
def test_the_judge_tells_each_broken_promise(record, words):
    (sentence,) = broken(check(record))
    assert words in sentence
