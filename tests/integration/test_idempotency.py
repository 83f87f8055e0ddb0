"""An idempotency key is asked for once, whoever repeats the call, and whatever became of the first one."""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeout

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.errors import IdempotencyConflict, InvalidInvocation, NodeFailed
from gaelp_tasks.overview import of_tiers, waiting_in
from gaelp_tasks.tasks.idempotency import id_of
from support.eventually import eventually
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis]

RACES = 200


@pytest.fixture
async def node():
    """Each answer has a number of its own; 'wrong' fails while `node.broken`, 'wait' never ends."""
    number = count(1)

    async def answer(request: Request, reply: Reply) -> None:
        said = request.json()["messages"][-1]["content"]
        if said == "wrong" and server.broken:
            reply.whole({"error": "out of order"}, 500)
            return
        reply.head()
        reply.token(f"answer {next(number)}")
        if said == "wait":
            await reply.gone.wait()
            return
        reply.last(eval_count=1)
        reply.end()

    async with ScriptedServer() as server:
        server.broken = True
        server.on("/api/chat", answer)
        yield server


def hang_up():
    """Close what Celery keeps for the results of this thread."""
    for waiting in app.backend._pending_results:  # a get() that ran out of time is kept there
        waiting.clear()
    app.backend.result_consumer.stop()
    app.backend.client.close()


@pytest.fixture
def outside():
    """`await outside(work)`: in one thread, as Celery's results belong to the thread that asked."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda work, *args, **how: asyncio.wrap_future(pool.submit(work, *args, **how))
        pool.submit(hang_up).result()


@pytest.fixture
async def worker(start_worker, node):
    return await asyncio.to_thread(
        start_worker,
        GAELP_OLLAMA_NODES=node.url,
        GAELP_NUM_PARALLEL="4",
        GAELP_DEFAULT_MODEL="tiny",
        GAELP_RETRY_ATTEMPTS="2",
        GAELP_RETRY_BASE_S="0.05",
    )


def waiting() -> int:
    return of_tiers(waiting_in(app))["interactive"]


async def test_two_callers_who_race_make_one_run_of_each_key(worker, node, outside):
    together = Barrier(2)

    def ask(number):
        together.wait()
        return invoke_agent.delay("x", idempotency_key=f"k{number}")

    def end(_):
        together.wait()
        hang_up()

    def race():
        with ThreadPoolExecutor(2) as pool:
            asked = [tuple(pool.map(ask, (number, number))) for number in range(RACES)]
            list(pool.map(end, range(2)))
        assert all(one.id == other.id for one, other in asked)
        told = [{one.get(timeout=60)["text"] for one in pair} for pair in asked]
        assert all(len(texts) == 1 for texts in told)
        return [*itertools.chain(*told)]

    texts = await outside(race)
    assert len(set(texts)) == RACES
    assert len(node.asked("/api/chat")) == RACES
    assert waiting() == 0


async def test_what_waits_or_runs_or_has_ended_is_not_asked_again(worker, node, outside):
    await outside(repeated)
    assert len(node.asked("/api/chat")) == 3


def repeated():
    first = invoke_agent.delay("x", idempotency_key="done")
    text = first.get(timeout=30)["text"]
    assert invoke_agent.delay("x", idempotency_key="done").get(timeout=30)["text"] == text

    later = invoke_agent.apply_async(["x"], {"idempotency_key": "later"}, countdown=2)
    eventually(lambda: app.redis.zscore(app.keys.parked, later.id), what="it is parked")
    assert invoke_agent.delay("x", idempotency_key="later").id == later.id
    assert waiting() == 0

    running = invoke_agent.delay("wait", idempotency_key="running")
    pieces = running.stream(timeout=30)
    next(pieces)
    with pytest.raises(CeleryTimeout):
        running.get(timeout=0.1)
    again = invoke_agent.delay("wait", idempotency_key="running")
    again.cancel()
    assert again.get(timeout=30)["text"] == "answer 2"
    assert running.get(timeout=30)["stop_reason"] == "cancelled"
    after = invoke_agent.delay("wait", idempotency_key="running")
    assert after.get(timeout=30)["stop_reason"] == "cancelled", "what was cancelled stays so"
    assert later.get(timeout=30)["text"] == "answer 3"


async def test_what_failed_is_run_again_and_what_was_forgotten_too(worker, node, outside):
    def ask():
        return invoke_agent.delay("wrong", idempotency_key="k")

    def fail():
        with pytest.raises(NodeFailed):
            ask().get(timeout=30)

    await outside(fail)
    await outside(fail)
    node.broken = False
    handle = await outside(ask)
    assert (await outside(handle.get, timeout=30))["text"] == "answer 1"
    assert len(node.asked("/api/chat")) == 5, "two attempts each, then one"

    place = app.keys.asked(handle.id)
    assert 0 < app.redis.ttl(place) <= app.settings.result_ttl_s + 60, "it is kept as long as the result"
    app.redis.delete(f"celery-task-meta-{handle.id}", app.keys.stream(handle.id))
    app.redis.expire(place, 30)
    handle = await outside(ask)
    assert (await outside(handle.get, timeout=30))["text"] == "answer 2"


async def test_what_expired_unseen_is_run_again(worker, node, outside):
    await outside(expired_once)
    assert len(node.asked("/api/chat")) == 1


def expired_once():
    expired = invoke_agent.apply_async(["x"], {"idempotency_key": "k"}, expires=-1)
    with pytest.raises(TaskRevokedError):
        expired.get(timeout=30)
    place, ttl_s = app.keys.asked(expired.id), app.settings.result_ttl_s + 60
    eventually(lambda: app.redis.ttl(place) <= ttl_s, what="the key ends with the result")
    again = invoke_agent.delay("x", idempotency_key="k")
    assert again.get(timeout=30)["text"] == "answer 1"


async def test_a_key_whose_publisher_died_is_published_by_the_next(worker, node, outside, monkeypatch):
    class Died(BaseException):
        pass

    def die(*_, **__):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("gaelp_tasks.celery_app.Celery.send_task", die)
        with pytest.raises(Died):
            invoke_agent.delay("x", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        invoke_agent.delay("y", idempotency_key="k")
    handle = await outside(invoke_agent.delay, "x", idempotency_key="k")
    assert (await outside(handle.get, timeout=30))["text"] == "answer 1"
    assert app.redis.get(app.keys.asked(handle.id)).endswith(" published")


def test_another_body_is_refused_in_one_sentence_and_nothing_is_published(broker):
    app.redis.flushdb()
    first = invoke_agent.delay("SECRET", idempotency_key="k", tenant="t")
    with pytest.raises(IdempotencyConflict) as refused:
        invoke_agent.delay("x", idempotency_key="k", tenant="t")
    assert first.id == id_of("k", "t")
    assert first.id in str(refused.value)
    assert "SECRET" not in str(refused.value)
    with pytest.raises(InvalidInvocation, match="leave task_id out"):
        invoke_agent.apply_async(["x"], {"idempotency_key": "k"}, task_id="mine")
    assert waiting() == 1
    assert invoke_agent.delay("x", idempotency_key="k").id == id_of("k", None)
    assert waiting() == 2
    app.redis.flushdb()


async def test_keys_hold_inside_chains_groups_and_chords(worker, node, outside):
    await outside(put_together)
    assert len(node.asked("/api/chat")) == 10


def put_together():
    def chained():
        return chain(
            invoke_agent.s("x", idempotency_key="first"), invoke_agent.s(idempotency_key="second")
        ).apply_async()

    def texts():
        members = [invoke_agent.s("x", idempotency_key=f"m{number}") for number in range(2)]
        return [one["text"] for one in group(members).apply_async().get(timeout=30)]

    def joined():
        members = [invoke_agent.s("x", idempotency_key=f"c{number}") for number in range(2)]
        return chord(members, invoke_agent.s()).apply_async().get(timeout=30)

    first = chained()
    assert (first.id, first.parent.id) == (id_of("second", None), id_of("first", None))
    text = first.get(timeout=30)["text"]
    assert chained().get(timeout=30)["text"] == text
    assert texts() == texts()
    assert joined()["text"] != joined()["text"], "only the body has no key"

    kept = invoke_agent.delay("x", idempotency_key="kept")
    kept.get(timeout=30)
    app.redis.delete(app.keys.stream(kept.id))  # streams are kept for a shorter time than results
    members = [invoke_agent.s("x", idempotency_key=key) for key in ("kept", "c0")]
    assert chord(members, invoke_agent.s()).apply_async().get(timeout=30)["text"]
