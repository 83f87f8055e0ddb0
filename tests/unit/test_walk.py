"""The walk of one invocation: every way out is an outcome, and what the stream tells about it."""

import asyncio

import pytest
from celery.exceptions import TimeLimitExceeded

from gaelp_tasks import registry, streams
from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.cancellation import Reason, request_cancel
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import (
    ModelMissing,
    NodeBusy,
    NodeUnreachable,
    RequestRefused,
    StreamStalled,
    StreamTruncated,
)
from gaelp_tasks.models import Usage
from gaelp_tasks.retries import Cut, Done, Failed, Retry, Snooze
from gaelp_tasks.streams import Start, StreamFenced
from gaelp_tasks.tasks.walk import CLAIMS_TTL_S, STOP_REASONS
from support.fakes import NODE, FakeBroker, Workbench

SOON_S = 10  # a test that waits longer than this has failed


@pytest.fixture
async def bench(monkeypatch):
    """`bench(*scripts, **settings)` is a process whose client plays these scripts."""
    monkeypatch.setattr(streams, "AGAIN_S", 0.0)
    benches = []

    def make(*scripts, client=None, **settings):
        made = Workbench(
            asyncio.get_running_loop(), FakeBroker(), client or ScriptedClient(*scripts), **settings
        )
        benches.append(made)
        return made

    yield make
    for made in benches:
        await made.redis.aclose()


@pytest.fixture
def agent_that_raises(monkeypatch):
    monkeypatch.setattr(registry.AGENTS, "registered", {})

    def register(error):
        class Clumsy(BaseAgent):
            async def run(self, messages, **options):
                yield ChatResponse(content="part")
                raise error

        registry.register_agent("clumsy")(Clumsy)
        return "clumsy"

    return register


async def stopped_at(gate, made, run, reason):
    """Walk until the script waits at `gate`, then stop the run."""
    walking = asyncio.create_task(made.walk(run))
    while not gate.reached:
        await asyncio.sleep(0)
    made.at.runs.stop(run.id, reason)
    return await asyncio.wait_for(walking, SOON_S)


class Gate:
    """A step of a script that waits for ever, and tells when it is reached."""

    def __init__(self):
        self.reached = False

    async def __call__(self):
        self.reached = True
        await asyncio.Event().wait()


async def test_a_whole_answer_is_done_and_streamed(bench):
    made = bench(["Hel", "lo"])
    outcome = await made.walk(made.run(model="scripted", tier="batch", priority=7, attempt=2))
    assert isinstance(outcome, Done)
    result = outcome.result
    assert (result.text, result.stop_reason, result.attempts) == ("Hello", "stop", 2)
    assert (result.id, result.agent, result.model, result.node) == ("i", "chat", "scripted", NODE)
    assert (result.tier, result.priority) == ("batch", 7)
    assert result.usage == Usage(prompt_tokens=1, completion_tokens=2)
    assert made.text() == "Hello"
    assert made.end() == {
        "outcome": "done",
        "stop_reason": "stop",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        "result": result.model_dump(mode="json", exclude={"text"}),
        "at": made.now(),
    }


async def test_the_stream_opens_with_who_runs_it_and_no_prompt(bench):
    made = bench(["x"])
    await made.walk(made.run(prompt="SECRET", model="scripted", metadata={"k": "SECRET"}))
    first = made.events()[0]
    assert isinstance(first, Start)
    assert first.facts == {
        "agent": "chat", "model": "scripted", "tier": "interactive", "priority": 5,
        "worker": "w@host", "node": NODE, "attempt": 1, "at": made.now(),
    }  # fmt: skip
    assert "SECRET" not in str(made.events())


async def test_each_run_takes_the_next_claim_and_the_fence_outlives_it(bench):
    made = bench(["x"])
    for claim in (1, 2, 3):
        await made.walk(made.run())
        assert made.events()[-1].claim == claim
    assert 0 < made.broker.sync.ttl("gaelp:claims:i") <= CLAIMS_TTL_S
    assert made.broker.sync.get("gaelp:claims:i") == "3"


async def test_timings_are_measured_with_the_clocks_given(bench):
    made = bench(client=None)
    made.at.client = ScriptedClient([passing(made, 2.0), "a", passing(made, 3.0), "b"], load_s=1.5)
    outcome = await made.walk(made.run(queued_s=4.0))
    timings = outcome.result.timings
    assert (timings.queued_s, timings.load_s, timings.first_token_s, timings.total_s) == (4.0, 1.5, 2.0, 5.0)


def passing(made, seconds):
    async def step():
        made.tick.advance(seconds)

    return step


async def test_phases_that_did_not_happen_have_no_time(bench):
    made = bench([RequestRefused("no")])
    run = made.run()
    run.published_at = None
    run.cancellation.stop(Reason.USER)
    outcome = await made.walk(run)
    timings = outcome.result.timings
    assert (timings.queued_s, timings.load_s, timings.first_token_s) == (None, None, None)


async def test_a_sender_whose_clock_is_ahead_makes_no_negative_time(bench):
    made = bench(["x"])
    outcome = await made.walk(made.run(queued_s=-30.0))
    assert outcome.result.timings.queued_s == 0.0


@pytest.mark.parametrize(("reason", "stop_reason"), STOP_REASONS.items())
async def test_a_run_that_is_stopped_keeps_its_partial_text(bench, reason, stop_reason):
    gate = Gate()
    made = bench(["Hel", "lo", gate])
    outcome = await stopped_at(gate, made, made.run(), reason)
    assert isinstance(outcome, Cut)
    assert (outcome.result.text, outcome.result.stop_reason) == ("Hello", stop_reason)
    assert outcome.result.usage.completion_tokens == 2
    assert made.text() == "Hello"
    assert (made.end()["outcome"], made.end()["stop_reason"]) == ("cut", stop_reason)
    assert made.end()["usage"]["completion_tokens"] == 2
    await asyncio.wait_for(made.at.client.closed.wait(), SOON_S)


@pytest.mark.parametrize("reason", [Reason.SHUTDOWN, Reason.EVICTION, Reason.PREEMPTION])
async def test_a_run_that_must_give_way_is_given_back_at_once_and_its_stream_stays_open(bench, reason):
    gate = Gate()
    made = bench(["Hel", gate])
    outcome = await stopped_at(gate, made, made.run(), reason)
    assert outcome == Snooze(0.0, f"stopped: {reason}")
    assert made.text() == "Hel"
    assert made.broker.sync.ttl("gaelp:stream:i") == -1
    assert "End" not in {type(event).__name__ for event in made.events()}


async def test_the_hard_time_limit_is_a_failure_of_celerys_class(bench):
    gate = Gate()
    made = bench(["Hel", gate])
    outcome = await stopped_at(gate, made, made.run(), Reason.TIME_LIMIT)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, TimeLimitExceeded)
    assert made.end()["outcome"] == "failed"
    assert made.end()["error"] == "TimeLimitExceeded"


def test_every_reason_has_an_outcome():
    given_back = {Reason.SHUTDOWN, Reason.EVICTION, Reason.PREEMPTION, Reason.LEASE}
    assert STOP_REASONS.keys() | given_back | {Reason.TIME_LIMIT} == set(Reason)


async def test_a_deadline_counts_from_the_publication(bench):
    gate = Gate()
    made = bench(["Hel", gate])
    outcome = await asyncio.wait_for(made.walk(made.run(deadline_s=60.0, queued_s=60.0)), SOON_S)
    assert isinstance(outcome, Cut)
    assert outcome.result.stop_reason == "deadline"


async def test_a_deadline_is_forgotten_when_the_run_ends_before_it(bench):
    made = bench(["x"])
    run = made.run(deadline_s=60.0)
    assert isinstance(await made.walk(run), Done)
    alarms = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]
    assert not any(getattr(alarm._callback, "__self__", None) is run.cancellation for alarm in alarms)


@pytest.mark.parametrize(
    ("queued_s", "attempt", "expires"), [(5.0, 1, False), (5.1, 1, True), (9.0, 2, False)]
)
async def test_only_what_never_ran_and_waited_too_long_expires(bench, queued_s, attempt, expires):
    made = bench(["x"])
    outcome = await made.walk(made.run(queue_ttl_s=5.0, queued_s=queued_s, attempt=attempt))
    assert outcome.result.stop_reason == ("expired" if expires else "stop")
    if expires:
        assert isinstance(outcome, Cut)
        assert made.at.client.asked == made.at.client.loads == []


async def test_what_was_cancelled_while_queued_never_touches_the_client(bench):
    made = bench(["x"])
    request_cancel(made.broker.sync, made.at.keys, "i", ttl_s=60.0)
    outcome = await made.walk(made.run())
    assert isinstance(outcome, Cut)
    assert (outcome.result.text, outcome.result.model, outcome.result.node) == ("", "", "")
    assert outcome.result.stop_reason == made.end()["stop_reason"] == "cancelled"
    assert made.at.client.asked == made.at.client.loads == []


async def test_a_stop_between_seat_and_walk_never_touches_the_client(bench):
    made = bench(["x"])
    run = made.run()
    made.at.runs.stop("i", Reason.USER)
    outcome = await made.walk(run)
    assert isinstance(outcome, Cut)
    assert made.at.client.asked == made.at.client.loads == []


async def test_who_stood_still_until_others_may_run_it_calls_no_model(bench):
    made = bench(["x"])
    made.at.lively = lambda: False
    outcome = await made.walk(made.run())
    assert isinstance(outcome, Snooze), "no attempt is spent"
    assert made.at.client.asked == []


async def test_who_was_overtaken_before_it_began_calls_no_model(bench):
    made = bench(["x"])
    await made.at.redis.set(made.at.keys.claims("i"), 2)
    run = made.run()
    run.claim = 1  # and nobody could tell it
    with pytest.raises(StreamFenced):
        await made.walk(run)
    assert made.at.client.asked == made.at.client.loads == []


# -- errors


async def test_a_stall_after_the_first_token_keeps_the_text(bench):
    made = bench(["Hel", StreamStalled("silence")])
    outcome = await made.walk(made.run())
    assert isinstance(outcome, Cut)
    assert (outcome.result.text, outcome.result.stop_reason) == ("Hel", "stall")
    assert made.end()["stop_reason"] == "stall"


async def test_a_stall_before_the_first_token_is_a_retry(bench):
    error = StreamStalled("silence")
    made = bench([error])
    outcome = await made.walk(made.run())
    assert isinstance(outcome, Retry)
    assert outcome.error is error
    assert 0.0 <= outcome.after_s <= made.at.policy.base_s
    await made.written()
    assert [type(event) for event in made.events()] == [Start]


@pytest.mark.parametrize("error", [NodeUnreachable("gone"), StreamTruncated("no end")])
async def test_a_lost_node_is_tried_again_until_the_attempts_are_spent(bench, error):
    made = bench(["Hel", error])
    outcomes = [await made.walk(made.run(attempt=attempt)) for attempt in (1, 2, 3)]
    assert [type(outcome) for outcome in outcomes] == [Retry, Retry, Failed]
    assert outcomes[-1] == Failed(error)
    assert made.end() == {
        "outcome": "failed", "error": type(error).__name__, "message": str(error), "at": made.now(),
    }  # fmt: skip
    assert sum(isinstance(event, Start) for event in made.events()) == 3
    assert made.broker.sync.ttl("gaelp:stream:i") > 0


async def test_a_busy_node_is_a_snooze_of_at_least_the_time_it_asks_for(bench):
    made = bench([NodeBusy("full", retry_after_s=7.5)])
    for attempt in (1, 3, 30):
        outcome = await made.walk(made.run(attempt=attempt))
        assert outcome == Snooze(7.5, "full")


@pytest.mark.parametrize("error", [ModelMissing("no such"), RequestRefused("no")])
async def test_what_would_fail_again_fails_at_once(bench, error):
    made = bench([error])
    assert await made.walk(made.run()) == Failed(error)
    assert made.end()["error"] == type(error).__name__


async def test_a_model_that_the_node_lacks_fails_before_it_is_loaded(bench):
    made = bench(["x"])
    outcome = await made.walk(made.run(model="other"))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ModelMissing)
    assert made.at.client.loads == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        ZeroDivisionError(),
        FileNotFoundError("my file"),
        PermissionError("mine"),
        ConnectionRefusedError("my own service"),
        TimeoutError("my own limit"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_agents_own_exception_is_a_failure(bench, agent_that_raises, error):
    made = bench(["x"])
    outcome = await made.walk(made.run(agent=agent_that_raises(error)))
    assert outcome == Failed(error)
    assert made.end()["error"] == type(error).__name__


# -- Redis


async def test_without_redis_a_run_is_put_off_and_no_attempt_is_spent(bench):
    made = bench(["x"])
    made.broker.goes_away()
    outcome = await made.walk(made.run(attempt=3))
    assert isinstance(outcome, Snooze)
    assert outcome.after_s == made.at.policy.snooze_s
    assert made.at.client.asked == []


async def test_a_run_that_was_taken_over_leaves_no_trace(bench):
    made = bench(client=None)

    async def taken_over():
        other = made.at.streams.open("i", 2)
        other.start({"worker": "another"})
        while made.at.streams.pending(other):
            await made.at.streams.flushed()

    async def flushed():
        await made.at.streams.flushed()

    made.at.client = ScriptedClient(["a", taken_over, "b", flushed, "c", flushed, "d"])
    with pytest.raises(StreamFenced):
        await asyncio.wait_for(made.walk(made.run()), SOON_S)
    assert [event.id for event in made.events()][-1] == "2-0"
    assert made.text() == "a"
    assert made.broker.sync.ttl("gaelp:stream:i") == -1


async def test_a_run_that_was_taken_over_at_its_last_token_leaves_no_trace_either(bench):
    made = bench(client=None)

    async def taken_over():
        other = made.at.streams.open("i", 2)
        other.start({"worker": "another"})
        while made.at.streams.pending(other):
            await made.at.streams.flushed()

    made.at.client = ScriptedClient(["a", taken_over])
    with pytest.raises(StreamFenced):
        await asyncio.wait_for(made.walk(made.run()), SOON_S)
    assert made.broker.sync.ttl("gaelp:stream:i") == -1
