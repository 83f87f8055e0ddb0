"""Long prompts, images and texts lie beside their messages: for as long as those may run, and no longer."""

import asyncio
import json
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from celery.exceptions import TaskRevokedError

from gaelp_tasks import app, dead_letters, embed, invoke_agent
from gaelp_tasks.attachments import keep, key_of, put
from gaelp_tasks.errors import AttachmentLost, IdempotencyConflict
from gaelp_tasks.leftovers import LEFT_S, expire
from gaelp_tasks.models.attachment import REFERENCE
from gaelp_tasks.queues import lists
from support.claims import KEYS, RESULTS, claim, holder, message, publish
from support.eventually import eventually
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis]

MIB = 1024**2
PROMPT = "Why is the sky blue? " * (5 * MIB // 21)
IMAGE = "iVBORw0KGgoA" * (2 * MIB // 12)
SMALL_BYTES = 4096
QUICK = {"GAELP_RETRY_BASE_S": "0.05", "GAELP_DEFAULT_MODEL": "tiny", "GAELP_NUM_PARALLEL": "2"}


@pytest.fixture
async def node():
    """Answers; fails the first time where the prompt says so, and while `node.hangs` never ends."""
    asked: Counter[str] = Counter()

    async def answer(request: Request, reply: Reply) -> None:
        start = request.json()["messages"][-1]["content"][:10]
        asked[start] += 1
        if start.startswith("fail") and asked[start] == 1:
            reply.whole({"error": "out of order"}, 500)
            return
        reply.head()
        reply.token("fine")
        if server.hangs:
            await reply.gone.wait()
            return
        reply.last(eval_count=1)
        reply.end()

    async with ScriptedServer() as server:
        server.hangs = False
        server.on("/api/chat", answer)
        yield server


async def told(handle):
    """Its result, or what it failed with is raised."""
    return await asyncio.to_thread(invoke_agent.AsyncResult(handle.id).get, timeout=60)


def beside():
    """Keys of all that lies beside messages."""
    return set(app.redis.scan_iter(match=app.keys.attachment("*", "*")))


def all_gone():
    eventually(lambda: not beside(), what="nothing lies beside messages any more")
    assert app.redis.hlen(app.keys.unacked) == 0


def prompts(node):
    return [request.json()["messages"][-1]["content"] for request in node.asked("/api/chat")]


async def test_long_calls_run_from_small_messages_and_leave_nothing(start_worker, node):
    whole = invoke_agent.delay(PROMPT, images=[IMAGE])
    [queued] = [text for name in lists("interactive.any") for text in app.redis.lrange(name, 0, -1)]
    assert len(queued) < SMALL_BYTES
    [key] = beside()
    assert app.redis.ttl(key) == -1
    assert app.redis.strlen(key) > len(PROMPT) + len(IMAGE)
    soon = invoke_agent.apply_async(["soon" + PROMPT], countdown=1)
    later = invoke_agent.apply_async(["later" + PROMPT], countdown=30 * 86_400)
    again = invoke_agent.delay("fail" + PROMPT)
    gone = invoke_agent.delay("gone" + PROMPT)
    gone.cancel()
    late = invoke_agent.apply_async(["late" + PROMPT], expires=datetime.now(UTC) - timedelta(seconds=1))
    assert len(beside()) == 6

    await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, **QUICK)
    assert (await told(whole))["text"] == "fine"
    assert (await told(again))["attempts"] == 2
    assert (await told(gone))["stop_reason"] == "cancelled"
    with pytest.raises(TaskRevokedError):
        await told(late)
    assert (await told(soon))["text"] == "fine"
    [parked] = app.redis.hvals(app.keys.parked_messages)
    assert len(parked) < SMALL_BYTES
    await asyncio.to_thread(eventually, lambda: len(beside()) == 1, what="only what is parked keeps its own")
    assert app.redis.ttl(*beside()) == -1
    later.cancel()
    assert (await told(later))["stop_reason"] == "cancelled"
    assert sorted(prompts(node)) == sorted([PROMPT, "soon" + PROMPT, *["fail" + PROMPT] * 2])
    [first, *_] = [
        request.json()["messages"][-1]
        for request in node.asked("/api/chat")
        if IMAGE.encode() in request.body
    ]
    assert (first["content"], first["images"]) == (PROMPT, [IMAGE])
    await asyncio.to_thread(all_gone)

    texts = ["a" * MIB, "b"]
    vectors = embed.delay(texts)
    assert len((await told(vectors))["embeddings"]) == 2
    await asyncio.to_thread(all_gone)

    one, other = (invoke_agent.delay("key" + PROMPT, idempotency_key="k") for _ in range(2))
    assert one.id == other.id
    with pytest.raises(IdempotencyConflict):
        invoke_agent.delay("kez" + PROMPT, idempotency_key="k")
    assert (await told(one))["text"] == "fine"
    assert prompts(node).count("key" + PROMPT) == 1
    await asyncio.to_thread(all_gone)


async def test_a_long_call_survives_the_worker_that_ran_it(start_worker, node):
    node.hangs = True
    first = await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, name="first", **QUICK)
    handle = invoke_agent.delay(PROMPT)
    await asyncio.to_thread(eventually, lambda: node.asked("/api/chat"), what="the model is asked")
    node.hangs = False
    first.send(signal.SIGKILL)
    await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, name="second", **QUICK)
    assert (await told(handle))["text"] == "fine"
    assert prompts(node) == [PROMPT, PROMPT]
    await asyncio.to_thread(all_gone)


async def test_what_is_missing_or_another_one_fails_and_a_dead_letter_keeps_its_own(start_worker, node):
    missing = invoke_agent.delay("missing" + PROMPT)
    app.redis.delete(*beside())
    tampered = invoke_agent.delay("tampered" + PROMPT)
    [key] = beside()
    app.redis.set(key, json.dumps({"prompt": "Do something else."}))
    replayed, purged = (invoke_agent.delay(name + PROMPT) for name in ("replayed", "purged"))
    leases = holder("a")
    ids = claim(leases, 4, ("interactive.any",))
    assert ids == [missing.id, tampered.id, replayed.id, purged.id]
    for tag, task in leases.held.items():
        if task.id in {replayed.id, purged.id}:
            leases.bury(tag, "rejected")
    leases.give_back(*leases.held)
    letters = {letter.task_id: letter.id for letter in dead_letters.listed(app, most=9)}
    assert len(beside()) == 3
    assert dead_letters.purge(app, [letters[purged.id]]) == 1
    assert len(beside()) == 2
    assert dead_letters.replay(app, [letters[replayed.id]]) == 1

    await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=node.url, **QUICK)
    with pytest.raises(AttachmentLost, match="is not there any more"):
        await told(missing)
    with pytest.raises(AttachmentLost, match="not what was published"):
        await told(tampered)
    assert (await told(replayed))["text"] == "fine"
    assert prompts(node) == ["replayed" + PROMPT]
    await asyncio.to_thread(all_gone)


# -- without a worker


def laid(task_id):
    """The header of a message beside which something lies."""
    reference = put(app.redis, KEYS, task_id, b'{"prompt":"x"}')
    keep(app.redis, KEYS, task_id, reference)
    return {REFERENCE: reference.model_dump()}


def test_a_message_that_comes_after_its_answer_takes_along_what_lies_beside_it(redis, leases):
    publish(message("1", **laid("1")), message("1", **laid("1")))
    assert claim(leases) == ["1"]
    redis.set(f"{RESULTS}1", json.dumps({"status": "SUCCESS"}))
    [tag] = leases.held
    leases.done(tag)
    assert len(beside()) == 2, "nobody has said that it ends with that"
    assert claim(leases) == []
    assert len(beside()) == 1


def test_an_acknowledgement_that_comes_too_late_takes_nothing_along(redis, leases):
    about = laid("1")
    publish(message("1", **about))
    claim(leases)
    [tag] = leases.held
    key = key_of(KEYS, {"id": "1", **about})
    leases.ends_with(tag, key)
    redis.hdel(KEYS.unacked, tag)  # it was swept, and runs elsewhere
    leases.done(tag)
    assert beside() == {key}


def test_what_belongs_to_no_message_gets_a_limit_and_everything_else_none(redis, leases):
    places = ("queued", "foreign", "held", "parked", "dead", "lost")
    about = {name: laid(name) for name in places}
    keys = {name: key_of(KEYS, {"id": name, **about[name]}) for name in places}
    publish(message("held", **about["held"]))
    publish(message("dead", **about["dead"]), queue="batch")
    publish(message("parked", eta="2126-11-20T00:00:00+00:00", **about["parked"]), queue="background")
    claim(leases, 3, ("interactive", "batch", "background"))
    [dead] = [tag for tag, task in leases.held.items() if task.id == "dead"]
    leases.bury(dead, "rejected")
    publish(message("queued", **about["queued"]))
    publish("junk", json.dumps([REFERENCE]), message("foreign", **about["foreign"]), queue="somewhere else")
    redis.expire(keys["queued"], 100)  # whoever published it died before he could keep it
    assert expire(app, idle_s=3600) == 0, "all of it was used just now"
    assert redis.ttl(keys["queued"]) > 0
    assert expire(app, idle_s=0) == 1
    limits = {name: redis.ttl(key) for name, key in keys.items()}
    assert limits == dict.fromkeys(places, -1) | {"lost": LEFT_S}
    assert expire(app, idle_s=0) == 0, "it has a limit already"
