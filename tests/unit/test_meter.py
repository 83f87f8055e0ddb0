"""Tokens per second of a node, how long runs take there, and what one run has received."""

import asyncio
import gc

import pytest

from gaelp_tasks.clients import ChatResponse, ScriptedClient
from gaelp_tasks.errors import NodeBusy
from gaelp_tasks.tasks.meter import RECENT, WINDOW_S, Meter, Tally
from support.fakes import NODE, Clock, FakeBroker, Workbench

HELLO = ChatResponse(content="Hello", model="scripted", node=NODE)


def test_the_rate_is_what_came_since_the_calls_before():
    meter = Meter()
    assert meter.rate(0.0) == 0.0
    meter.tokens += 10
    assert meter.rate(1.0) == 10.0
    assert meter.rate(2.0) == 5.0


def test_a_call_at_the_same_moment_divides_by_nothing():
    meter = Meter()
    meter.rate(1.0)
    meter.tokens += 3
    assert meter.rate(1.0) == 0.0


@pytest.mark.parametrize("poll_s", [0.2, 1.0, 3.0, 30.0])
def test_a_steady_stream_has_its_own_rate_however_often_one_looks(poll_s):
    meter, now = Meter(), 0.0
    for _ in range(50):
        rate = meter.rate(now)
        now += poll_s
        meter.tokens += int(40 * poll_s)
    assert rate == pytest.approx(40, rel=0.01)


def test_a_burst_is_forgotten_after_the_window():
    meter = Meter()
    meter.rate(0.0)
    meter.tokens += 100
    rates = [meter.rate(float(second)) for second in range(1, 12)]
    assert rates[0] == 100.0
    assert rates == sorted(rates, reverse=True), "smoothed: it fades"
    assert rates[int(WINDOW_S) + 1] == 0.0


def test_old_calls_are_not_kept():
    meter = Meter()
    for second in range(10_000):
        meter.rate(float(second))
    assert len(meter._samples) <= WINDOW_S + 2


def test_a_run_feeds_the_meter_of_the_node_that_answers_it():
    clock, meters = Clock(5.0), {"http://a": Meter(), "http://b": Meter()}
    tally = Tally(meters, clock)
    assert (tally.node, tally.tokens, meters["http://a"].heard_at) == ("", 0, None)
    tally.count("http://a", "m")
    clock.advance(2.0)
    tally.count("http://b", "n", 4)
    assert (tally.node, tally.tokens) == ("http://b", 5)
    heard = {url: (meter.tokens, meter.heard_at, meter.model) for url, meter in meters.items()}
    assert heard == {"http://a": (1, 5.0, "m"), "http://b": (4, 7.0, "n")}


def test_what_no_node_sent_is_nobodys_rate():
    meters = {"http://a": Meter()}
    tally = Tally(meters, Clock(1.0))
    tally.count("", "")
    tally.count("http://elsewhere", "m")
    assert tally.tokens == 2
    assert (meters["http://a"].tokens, meters["http://a"].heard_at) == (0, None)


def test_a_run_without_tokens_is_a_sign_of_life_all_the_same():
    meters = {"http://a": Meter()}
    Tally(meters, Clock(1.0)).count("http://a", "m", 0)
    assert (meters["http://a"].tokens, meters["http://a"].heard_at) == (0, 1.0)


def test_how_long_runs_take_is_told_by_model_and_by_the_last_ones():
    meter = Meter()
    assert meter.run_s("m") is None
    meter.lasted("m", 2.0)
    meter.lasted("m:latest", 4.0)
    meter.lasted("n", 100.0)
    assert meter.run_s("m") == meter.run_s("m:latest") == 3.0
    for _ in range(RECENT):
        meter.lasted("m", 7.0)
    assert meter.run_s("m") == 7.0, "what was long ago is forgotten"


@pytest.fixture
async def bench():
    """`bench(*scripts)` is a process whose client plays these scripts."""
    benches = []

    def make(*scripts):
        benches.append(Workbench(asyncio.get_running_loop(), FakeBroker(), ScriptedClient(*scripts)))
        return benches[-1]

    yield make
    for made in benches:
        await made.redis.aclose()


async def test_a_run_that_ends_teaches_how_long_it_had_its_slot_without_the_load(bench):
    async def think():
        made.tick.advance(9.0)

    async def load(model=None):
        made.tick.advance(100.0)
        return 100.0

    made = bench([think, HELLO])
    made.at.client.load = load
    meter = made.at.nodes[0].meter
    await made.walk(made.run(model="scripted"))
    assert meter.run_s("scripted") == 9.0


async def test_a_run_that_is_repeated_teaches_nothing(bench):
    made = bench([HELLO, NodeBusy("full")])
    await made.walk(made.run(model="scripted"))
    assert made.at.nodes[0].meter.run_s("scripted") is None


async def test_the_count_of_a_run_that_is_over_is_not_kept():
    bench = Workbench(asyncio.get_running_loop(), FakeBroker(), ScriptedClient())
    tally = bench.at.tally("a")
    assert bench.at.tallies["a"] is tally
    del tally
    gc.collect()
    assert "a" not in bench.at.tallies
    await bench.redis.aclose()
