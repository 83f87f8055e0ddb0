"""What an earlier claim has told is told again, and never made twice."""

import asyncio

import pytest

from gaelp_tasks import errors, streams
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import ModelMissing, NodeUnreachable
from gaelp_tasks.readers import Reading
from gaelp_tasks.retries import Cut, Done, Failed, Retry
from gaelp_tasks.streams import End, StreamFenced
from gaelp_tasks.tasks.settlement import facts_of
from support.fakes import FakeBroker, Workbench


@pytest.fixture
async def bench(monkeypatch):
    """`bench(*scripts)` is a process whose client plays these scripts, all on one Redis."""
    monkeypatch.setattr(streams, "AGAIN_S", 0.0)
    broker, benches = FakeBroker(), []

    def make(*scripts):
        benches.append(Workbench(asyncio.get_running_loop(), broker, ScriptedClient(*scripts)))
        return benches[-1]

    yield make
    for made in benches:
        await made.redis.aclose()


def read(made) -> str:
    """What a reader sees who comes now."""
    reading, events = Reading(), made.events()
    newest = events[-1].claim
    text = "".join(reading.take(event) for event in events if event.claim == newest)
    assert reading.end is not None
    return text


async def test_an_answer_that_was_told_is_not_made_again(bench):
    first = await bench(["Hel", "lo"]).walk(bench().run())
    assert isinstance(first, Done)
    made = bench(["something else"])
    again = await made.walk(made.run(attempt=1))
    assert again == first
    assert read(made) == "Hello"
    assert made.events()[-1].claim == 2


async def test_a_cut_answer_stays_cut_with_its_text(bench):
    async def forever():
        await asyncio.Event().wait()

    made = bench(["Hel", forever])
    walking = asyncio.create_task(made.walk(made.run()))
    while not made.text():
        await asyncio.sleep(0)
    made.at.runs.stop("i", Reason.DEADLINE)
    first = await walking
    assert isinstance(first, Cut)
    made = bench(["something else"])
    assert await made.walk(made.run()) == first
    assert read(made) == "Hel"


async def test_a_failure_that_was_told_is_the_same_failure(bench):
    made = bench([ModelMissing("There is no such model.")])
    assert isinstance(await made.walk(made.run()), Failed)
    made = bench(["something else"])
    again = await made.walk(made.run())
    assert isinstance(again, Failed)
    assert isinstance(again.error, ModelMissing)
    assert str(again.error) == "There is no such model."


async def test_a_failure_of_somebody_elses_kind_is_found_out_again(bench):
    assert not hasattr(errors, "ZeroDivisionError")
    made = bench(["fine"])
    stream = made.at.streams.open("i", 1)
    stream.start({})
    await stream.end(facts_of(Failed(ZeroDivisionError("x"))))
    made.broker.sync.set(made.at.keys.claims("i"), 1)
    outcome = await made.walk(made.run())
    assert isinstance(outcome, Done)
    assert read(made) == "fine"


async def test_a_run_that_died_before_its_end_is_run_again(bench):
    made = bench(["fine"])
    stream = made.at.streams.open("i", 1)
    stream.start({})
    stream.write("half of")
    await stream.arrived()
    made.broker.sync.set(made.at.keys.claims("i"), 1)
    outcome = await made.walk(made.run())
    assert isinstance(outcome, Done)
    assert outcome.result.text == read(made) == "fine"


async def test_a_late_run_adds_no_end_once_the_next_claim_has_looked(bench):
    made = bench(["fine"])
    late = made.at.streams.open("i", 1)
    late.start({})
    await late.arrived()
    made.broker.sync.set(made.at.keys.claims("i"), 1)
    assert isinstance(await made.walk(made.run()), Done)
    with pytest.raises(StreamFenced):
        await late.end({"outcome": "done"})
    assert sum(isinstance(event, End) for event in made.events()) == 1


async def test_a_late_run_asks_for_no_repetition(bench):
    made = bench([NodeUnreachable("gone")])
    run = made.run()
    assert isinstance(await made.walk(run), Retry)
    made = bench([NodeUnreachable("gone")])
    run = made.run()
    run.claim = 1
    made.broker.sync.set(made.at.keys.claims("i"), 2)
    with pytest.raises(StreamFenced):
        await made.walk(run)
