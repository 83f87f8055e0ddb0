"""Whether a node's model answers: when it is asked, and what its answers mean."""

import asyncio

import pytest

from gaelp_tasks.clients import ScriptedClient
from gaelp_tasks.clients.routers import LeastLoadedRouter, Outcome
from gaelp_tasks.errors import NodeBusy, NodeFailed
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.meter import Meter
from gaelp_tasks.tasks.resources import Node
from gaelp_workers import health
from gaelp_workers.health import Pulse, Question, question
from support.fakes import NODE, FakeBroker, Workbench, turns

EVERY_S, STAYS_S = 30.0, 300.0


def heard(at, model="m"):
    meter = Meter()
    meter.heard_at, meter.model = at, model
    return meter


def ask(now, meter, *, asked_at=0.0, loaded=("m:latest",), **settings):
    chosen = Settings(**{"probe_interval_s": EVERY_S, "keep_alive_s": STAYS_S} | settings)
    return question(now, meter, asked_at, chosen, loaded)


def test_a_model_that_was_heard_lately_is_not_asked():
    assert ask(39.9, heard(10.0)) is None
    assert ask(40.0, heard(10.0)) == Question("m:latest", 270.0)


def test_a_model_that_was_asked_lately_is_not_asked_again():
    assert ask(60.0, heard(10.0), asked_at=40.0) is None
    assert ask(70.0, heard(10.0), asked_at=40.0) == Question("m:latest", 240.0)


def test_no_question_keeps_a_model_for_longer_than_its_runs_wanted_or_loads_one_that_is_leaving():
    """Each call renews keep_alive: asked every 30 s with all of it a model would never leave."""
    assert ask(10.0 + STAYS_S - 5.0, heard(10.0)).keep_alive_s == 5.0
    assert ask(10.0 + STAYS_S - 1.0, heard(10.0)) is None
    assert ask(10.0 + 5 * STAYS_S, heard(10.0)) is None


def test_a_model_that_stays_for_ever_is_asked_for_ever():
    assert ask(10_000.0, heard(10.0), keep_alive_s=-1) == Question("m:latest", -1.0)


@pytest.mark.parametrize("loaded", [(), ("other:latest",), ("m:1b",)])
def test_what_is_not_in_memory_or_not_ours_is_left_alone(loaded):
    assert ask(100.0, heard(10.0), loaded=loaded) is None


def test_before_a_first_run_only_the_model_of_the_settings_is_ours():
    assert ask(100.0, Meter(), loaded=("foreign:latest",)) is None
    assert ask(100.0, Meter(), loaded=("x", "mine:latest"), default_model="mine") == Question(
        "mine:latest", 200.0
    )


def test_zero_is_never():
    assert ask(100.0, heard(10.0), probe_interval_s=0) is None


class Asking(ScriptedClient):
    """A client whose answers to questions a test decides."""

    def __init__(self):
        super().__init__()
        self.probed = []
        self.answer = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def probe(self, model=None):
        self.probed.append(model)
        await self.gate.wait()
        if self.answer is not None:
            raise self.answer
        return 0.1


@pytest.fixture
async def bench():
    made = Workbench(asyncio.get_running_loop(), FakeBroker(), Asking(), probe_interval_s=EVERY_S)
    made.stays = []

    def lasting(keep_alive_s):
        made.stays.append(keep_alive_s)
        return made.at.client

    made.router = LeastLoadedRouter([NODE, "http://other"])
    made.at.nodes = (Node(NODE, made.at.client, lasting, router=made.router, address=NODE),)
    made.at.tally("a").count(NODE, "m")
    made.pulse = Pulse(made.at, made.at.nodes[0])
    yield made
    await made.pulse.stop()
    await made.redis.aclose()


async def feel(bench, *, after_s=EVERY_S, loaded=("m:latest",), free=True):
    """One poll, and the answer to the question if one was asked."""
    bench.tick.advance(after_s)
    bench.pulse.feel(loaded, free=free)
    await turns()
    return bench.pulse.trouble


async def test_a_model_that_answers_is_well_and_asked_in_the_measure_that_is_left(bench):
    assert await feel(bench, after_s=1.0) == ""
    assert bench.at.client.probed == []
    assert await feel(bench) == ""
    assert bench.at.client.probed == ["m:latest"]
    assert bench.stays == [pytest.approx(STAYS_S - EVERY_S - 1.0)]
    assert bench.at.client.is_closed


async def test_a_full_node_is_not_asked(bench):
    await feel(bench, free=False)
    assert bench.at.client.probed == []


async def test_a_model_that_fails_is_trouble_until_it_answers_again(bench):
    bench.at.client.answer = NodeFailed("It is broken.")
    assert await feel(bench) == "It is broken."
    assert await feel(bench, after_s=1.0) == "It is broken.", "nobody has heard better news"
    bench.at.client.answer = None
    assert await feel(bench) == ""


async def test_a_model_that_fails_gets_no_calls_until_it_answers(bench):
    def chosen():
        lease = bench.router.acquire("m")
        lease.report(Outcome.LEFT)
        return lease.node

    bench.at.client.answer = NodeFailed("It is broken.")
    await feel(bench)
    assert {chosen() for _ in range(4)} == {"http://other"}
    bench.at.client.answer = None
    await feel(bench)
    assert {chosen() for _ in range(4)} == {NODE, "http://other"}


async def test_a_run_that_hears_the_node_ends_its_trouble(bench):
    bench.at.client.answer = NodeFailed("It is broken.")
    assert await feel(bench)
    bench.tick.advance(1.0)
    bench.at.tally("b").count(NODE, "m")
    assert await feel(bench, after_s=0.0) == ""


async def test_a_restart_ends_the_trouble_with_the_model(bench):
    bench.at.client.answer = NodeFailed("It is broken.")
    assert await feel(bench)
    assert await feel(bench, after_s=1.0, loaded=()) == ""


async def test_a_busy_node_is_no_sick_one(bench):
    bench.at.client.answer = NodeBusy("full")
    assert await feel(bench) == ""


async def test_a_model_that_says_nothing_is_trouble_and_holds_up_no_poll(bench, monkeypatch):
    monkeypatch.setattr(health, "ANSWER_S", 0.01)
    bench.at.client.gate.clear()
    assert await feel(bench) == ""
    assert await feel(bench) == "", "the first question is still open"
    assert bench.at.client.probed == ["m:latest"], "one question at a time"
    await asyncio.wait([bench.pulse._asking], timeout=10)
    assert bench.pulse.trouble.startswith(f"{NODE} has 'm:latest' in memory, and that did not say one token")
    assert bench.pulse.trouble.endswith(".")


async def test_an_open_question_is_given_up_at_the_end(bench):
    bench.at.client.gate.clear()
    await feel(bench)
    await bench.pulse.stop()
    assert bench.pulse._asking.cancelled()
