"""Cancelling many at once, while workers take, park and run them."""

import asyncio
import json
import threading
import tracemalloc
from itertools import count

import pytest

from gaelp_tasks import app, invoke_agent, roundup
from gaelp_tasks.queues import lists
from gaelp_tasks.roundup import Filter
from support.eventually import eventually
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis]

BACKGROUND = Filter(tiers=frozenset({"background"}))
MANY = 10_000
PADDING = "SECRET " * 50


@pytest.fixture
async def node():
    """Never ends an answer to 'wait'."""
    number = count(1)

    async def answer(request: Request, reply: Reply) -> None:
        reply.head()
        reply.token(f"answer {next(number)}")
        if request.json()["messages"][-1]["content"] == "wait":
            await reply.gone.wait()
            return
        reply.last(eval_count=1)
        reply.end()

    async with ScriptedServer() as server:
        server.on("/api/chat", answer)
        yield server


async def test_who_runs_is_parked_or_queued_is_cancelled_and_nobody_else(start_worker, node):
    await asyncio.to_thread(
        start_worker, GAELP_OLLAMA_NODES=node.url, GAELP_NUM_PARALLEL="2", GAELP_DEFAULT_MODEL="tiny"
    )
    await asyncio.to_thread(cancelled_everywhere)


def cancelled_everywhere():
    ours = {"tier": "background", "tenant": "t"}
    parked = invoke_agent.apply_async(["x"], ours, countdown=3600)
    other = invoke_agent.apply_async(["x"], {"tier": "batch"}, countdown=3600)
    eventually(lambda: app.redis.zcard(app.keys.parked) == 2, what="both are parked")
    running = [invoke_agent.delay("wait", **ours), invoke_agent.delay("wait", tier="batch")]
    for one in running:
        next(one.stream(timeout=30))
    queued = [invoke_agent.delay("x", **ours) for _ in range(3)]

    wanted = Filter(tiers=frozenset({"background"}), tenant="t")
    assert roundup.count(app, Filter(tenant="u")).total() == 0
    assert roundup.count(app, wanted) == {"queued": 3, "parked": 1, "running": 1}
    assert roundup.cancel(app, wanted) == {"queued": 3, "parked": 1, "running": 1}
    results = [one.get(timeout=30) for one in (running[0], parked, *queued)]
    assert {result["stop_reason"] for result in results} == {"cancelled"}
    assert [bool(result["text"]) for result in results] == [True, False, False, False, False]
    assert roundup.cancel(app, wanted).total() == 0
    assert app.redis.zcard(app.keys.parked) == 1
    assert running[1].state == "STARTED"
    for one in (running[1], other):
        one.cancel()
        one.get(timeout=30)


def publish(numbers, queue="background", countdown=None):
    """Messages as our app sends them, in pages: publishing one by one would take minutes."""
    first = invoke_agent.apply_async([PADDING], {"tier": queue}, countdown=countdown)
    key = app.keys.queue(lists(f"{queue}.any")[5])
    text = app.redis.rpop(key)
    for start in range(0, numbers, 1000):
        app.redis.lpush(key, *(text.replace(first.id, f"{queue}-{start + at}") for at in range(1000)))


def test_many_are_met_in_less_memory_than_they_take(broker):
    app.redis.flushdb()
    publish(MANY)
    publish(1000, queue="batch")
    told = []
    tracemalloc.start()
    try:
        assert roundup.count(app, BACKGROUND) == {"queued": MANY}
        assert roundup.cancel(app, BACKGROUND, told.append) == {"queued": MANY}
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 8 * 1024**2
    assert told[-1] == MANY
    assert roundup.count(app, BACKGROUND).total() == 0
    assert roundup.count(app, Filter()) == {"queued": 1000}
    app.redis.flushdb()


def test_who_moves_while_one_looks_does_not_escape(broker):
    """Somebody takes from one end, gives back, parks and unparks all the time."""
    app.redis.flushdb()
    publish(3000)
    key, over, moves = app.keys.queue(lists("background.any")[5]), threading.Event(), count()

    def move():
        while not over.is_set():
            number = next(moves)
            text = app.redis.rpop(key)
            record = json.dumps({"queue": key}) + f"\n{text}"
            if number % 3 == 0:
                app.redis.rpush(key, text)
            elif number % 3 == 1:
                app.redis.hset(app.keys.parked_messages, f"p{number}", record)
            else:
                app.redis.hset(app.keys.unacked, f"h|{number}", record)
            if number % 5 == 0:
                for place in (app.keys.parked_messages, app.keys.unacked):
                    name = app.redis.hrandfield(place)
                    with app.redis.pipeline(transaction=True) as pipe:
                        if name:
                            back = app.redis.hget(place, name).partition("\n")[2]
                            pipe.hdel(place, name).lpush(key, back)
                        pipe.execute()

    mover = threading.Thread(target=move)
    mover.start()
    try:
        eventually(lambda: next(moves) > 200, what="messages move")
        assert roundup.cancel(app, BACKGROUND).total() == 3000
    finally:
        over.set()
        mover.join()
    assert len(list(app.redis.scan_iter(match=app.keys.cancel("*"), count=1000))) == 3000
    app.redis.flushdb()
