"""The main job on a real Redis, a real worker process and a real engine with a tiny model."""

import asyncio
import base64
import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from threading import Event
from time import sleep

import pytest
import requests
from celery.exceptions import TimeoutError as CeleryTimeout
from typer.testing import CliRunner

from gaelp_tasks import app, embed, invoke_agent, readers, results
from gaelp_tasks.cli.app import cli
from gaelp_tasks.errors import InvocationCut, ModelMissing, RequestRefused, StreamUnavailable
from gaelp_tasks.lifecycle import State
from gaelp_tasks.overview import describe, live_nodes, whole_id
from gaelp_tasks.streams import Piece
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.usefixtures("worker")]

ENDLESS = {"num_predict": 100_000}
SHORT = {"num_predict": 40, "seed": 7}


def test_an_invocation_streams_the_text_that_it_returns():
    handle = invoke_agent.delay("Why is the sky blue?", agent="chat", tier="interactive", options=SHORT)
    streamed = "".join(handle.stream(timeout=20))
    result = handle.get(timeout=10)
    assert streamed == result["text"] != ""
    assert result["stop_reason"] == "length"
    assert result["id"] == handle.id
    assert result["usage"]["completion_tokens"] == 40
    assert result["timings"]["queued_s"] >= 0
    assert result["timings"]["first_token_s"] <= result["timings"]["total_s"]


def test_one_that_waits_for_its_countdown_is_known_by_its_first_characters():
    handle = invoke_agent.apply_async(["Hi"], {"options": SHORT}, countdown=3)
    eventually(lambda: describe(app, handle.id).state is State.WAITING)
    assert whole_id(app, handle.id[:8]) == handle.id
    handle.cancel()
    assert handle.get(timeout=20)["stop_reason"] == "cancelled"


@pytest.mark.parametrize("tier", ["interactive", "batch", "background"])
def test_every_tier_is_served(tier):
    result = invoke_agent.apply_async(["Hi"], {"tier": tier, "priority": 8, "options": SHORT}).get(timeout=20)
    assert (result["tier"], result["priority"]) == (tier, 8)


def test_a_queue_given_without_a_tier_sets_the_tier():
    assert (
        invoke_agent.apply_async(["Hi"], {"options": SHORT}, queue="background").get(timeout=20)["tier"]
        == "background"
    )


async def test_astream_and_late_readers_see_the_same_text():
    handle = invoke_agent.delay("A long story", options={"num_predict": 300, "seed": 1})

    async def read() -> str:
        async with aclosing(handle.astream(timeout=20)) as pieces:
            return "".join([piece async for piece in pieces])

    early = await asyncio.gather(read(), read())
    late = await read()
    text = (await asyncio.to_thread(handle.get, timeout=10))["text"]
    assert {*early, late} == {text}


def test_two_hundred_readers_that_break_off_and_come_back_miss_and_repeat_nothing():
    handle = invoke_agent.delay("Once upon a time", options={"num_predict": 3000, "seed": 3})

    def read_with_breaks(seed: int) -> tuple[str, int]:
        rng = random.Random(seed)
        text, after, breaks = "", "0-0", 0
        while True:
            patience = rng.randrange(1, 5) if breaks < 25 else 1 << 30
            for event in handle.events(after=after):
                if event is None:
                    continue
                after = event.id
                if isinstance(event, Piece):
                    text += event.text
                elif type(event).__name__ == "End":
                    return text, breaks
                patience -= 1
                if patience == 0:
                    breaks += 1
                    break

    with ThreadPoolExecutor(8) as pool:
        texts, breaks = zip(*pool.map(read_with_breaks, range(8)), strict=True)
    assert {*texts} == {handle.get(timeout=20)["text"]}
    assert sum(breaks) == 200


def test_attach_as_json_ends_where_no_run_ever_began(monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_S", 0.1)
    handles = {
        "TaskRevokedError": invoke_agent.apply_async(["Hi"], countdown=1, expires=0.5),
        "InvalidInvocation": app.send_task("gaelp.invoke_agent", ["Hi"], {"agent": "nobody"}, queue="batch"),
        "NotRegistered": app.send_task("no.such", ["Hi"], queue="batch"),
    }
    for error, handle in handles.items():
        done = CliRunner().invoke(cli, ["attach", "--json", handle.id])
        [end] = map(json.loads, done.stdout.splitlines())
        assert (end["event"], end["facts"]["error"]) == ("end", error)


def test_cancel_stops_the_model_within_a_second_and_keeps_the_text(node):
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    stream = handle.stream(timeout=20)
    begun = next(stream)
    assert busy_slots(node) >= 1
    handle.cancel()
    eventually(lambda: busy_slots(node) == 0, within_s=1.0, what="the model is free")
    result = handle.get(timeout=5)
    assert result["stop_reason"] == "cancelled"
    assert result["text"] == begun + "".join(stream)
    assert result["usage"]["completion_tokens"] > 0


def test_a_deadline_cuts_and_keeps_the_text():
    result = invoke_agent.delay("Never stop", options=ENDLESS, deadline_s=0.5).get(timeout=20)
    assert result["stop_reason"] == "deadline"
    assert result["text"]


def test_celerys_soft_time_limit_is_a_deadline_and_the_hard_one_fails():
    soft = invoke_agent.apply_async(["Never stop"], {"options": ENDLESS}, soft_time_limit=0.5)
    assert soft.get(timeout=20)["stop_reason"] == "deadline"
    hard = invoke_agent.apply_async(["Never stop"], {"options": ENDLESS}, time_limit=0.5)
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        hard.get(timeout=20)


def test_terminating_from_celery_is_cancelling():
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    next(handle.stream(timeout=20))
    app.control.revoke(handle.id, terminate=True)
    result = handle.get(timeout=10)
    assert result["stop_reason"] == "cancelled"
    assert result["text"]


def test_a_cut_run_carries_on_no_chain():
    first = invoke_agent.s("Never stop", options=ENDLESS, deadline_s=0.3)
    chained = (first | invoke_agent.s(agent="coding")).apply_async()
    assert chained.parent.get(timeout=20)["stop_reason"] == "deadline"
    with pytest.raises(InvocationCut):
        chained.get(timeout=20)
    with pytest.raises(InvocationCut):
        list(chained.stream(timeout=20))
    assert describe(app, chained.id).state is State.FAILED


def test_a_result_of_which_nobody_was_told_is_found_all_the_same(monkeypatch):
    """redis-py restores a lost subscription by itself; what was told meanwhile is lost."""
    monkeypatch.setattr(results, "RELOOK_S", 0.3)
    handle = invoke_agent.delay("Never stop", options=ENDLESS)
    next(handle.stream(timeout=20))
    waiting, consumer = Event(), app.backend.result_consumer

    def hears_nothing(timeout=None):
        waiting.set()
        sleep(0.01)

    monkeypatch.setattr(consumer, "drain_events", hears_nothing)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(handle.get, 15)
        assert waiting.wait(10)
        handle.cancel()
        assert found.result()["stop_reason"] == "cancelled"


def test_waiting_ends_when_it_was_to_end(monkeypatch):
    monkeypatch.setattr(results, "RELOOK_S", 0.05)
    handle = invoke_agent.apply_async(["Hi"], {"options": SHORT}, countdown=60)
    for timeout in (0.12, 0):
        with pytest.raises(CeleryTimeout):
            handle.get(timeout)
    handle.cancel()


def test_what_waits_for_its_time_need_not_wait_to_be_cancelled():
    handle = invoke_agent.apply_async(["Later"], {"options": SHORT}, countdown=3600)
    handle.cancel()
    assert handle.get(timeout=20)["stop_reason"] == "cancelled"


def test_a_chain_passes_the_text_on():
    chained = (
        invoke_agent.s("Hi", options=SHORT) | invoke_agent.s(agent="coding", options=SHORT)
    ).apply_async()
    assert chained.get(timeout=20)["agent"] == "coding"


def test_embeddings_come_in_the_order_of_the_texts():
    together = embed.delay(["a cat", "a dog", "the law"]).get(timeout=20)
    alone = embed.delay("a dog").get(timeout=20)
    assert len(together["embeddings"]) == 3
    assert together["embeddings"][1] == pytest.approx(alone["embeddings"][0], abs=1e-3)


def test_an_unknown_model_fails_with_its_own_error_and_is_not_retried():
    handle = invoke_agent.delay("Hi", model="no-such-model")
    with pytest.raises(ModelMissing, match="no-such-model"):
        handle.get(timeout=20)
    with pytest.raises(ModelMissing):
        list(handle.stream(timeout=5))
    assert describe(app, handle.id).state is State.FAILED


def test_images_reach_the_wire_and_are_refused_by_a_model_that_cannot_see():
    image = base64.b64encode(b"no picture").decode()
    with pytest.raises(RequestRefused):
        invoke_agent.delay("What is this?", images=[image]).get(timeout=20)


def test_a_json_schema_shapes_the_answer():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    text = invoke_agent.delay("Answer", format=schema, options={"num_predict": 100}).get(timeout=30)["text"]
    assert '"ok"' in text


def test_bad_input_from_a_plain_sender_fails_without_a_retry():
    result = app.send_task("gaelp.invoke_agent", [""], queue="interactive")
    with pytest.raises(Exception, match="The prompt is empty"):
        result.get(timeout=20)
    assert app.backend.get_task_meta(result.id)["status"] == "FAILURE"


def test_show_tells_the_whole_story_of_an_invocation():
    handle = invoke_agent.delay("Hi", options=SHORT)
    handle.get(timeout=20)
    told = describe(app, handle.id)
    assert told.state is State.DONE
    assert told.start["agent"] == "chat"
    assert told.start["attempt"] == 1
    assert told.end["outcome"] == "done"


def test_the_node_announces_models_slots_and_memory():
    [node] = live_nodes(app)
    assert node.healthy
    assert node.slots == 4
    assert "tiny:latest" in node.models
    assert 0 < node.memory.free_bytes <= node.memory.total_bytes


def test_a_stream_that_is_no_longer_kept_says_so():
    handle = invoke_agent.delay("Hi", options=SHORT)
    handle.get(timeout=20)
    app.redis.delete(app.keys.stream(handle.id))
    with pytest.raises(StreamUnavailable, match="no longer kept"):
        list(handle.stream(timeout=10))


def test_neither_log_nor_events_nor_inspect_carry_prompts_or_answers(worker):
    hidden = "xyzzy-hidden-prompt"
    seen = []
    sent = []

    def on_event(event):
        if not sent:  # the first heartbeat: from now on nothing is missed
            options = {"queue": "interactive", "argsrepr": repr([hidden])}
            sent.append(app.send_task("gaelp.invoke_agent", [hidden], {"options": SHORT}, **options))
        seen.append(event)

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": on_event})
        for _ in receiver.itercapture(limit=None, timeout=20, wakeup=True):
            if seen and seen[-1]["type"] == "task-succeeded" and seen[-1]["uuid"] == sent[0].id:
                break
    [plain] = sent
    answer = plain.get(timeout=20)["text"]
    ours = [event for event in seen if event.get("uuid") == plain.id and event["type"] != "task-sent"]
    assert {event["type"] for event in ours} >= {"task-received", "task-started", "task-succeeded"}
    text = repr(ours) + worker.log()
    assert hidden not in text
    assert answer[:20] not in text


def busy_slots(node: str) -> int:
    slots = requests.get(f"{node}/api/gaelp/slots", timeout=5).json()
    return sum(model["busy"] for model in slots.values())
