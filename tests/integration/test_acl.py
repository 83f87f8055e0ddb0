"""The users that docs/redis.md describes, made by its very lines, can do what they are for and no more."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis as redis_py
from celery import chord

from gaelp_tasks import attachments, dead_letters
from gaelp_tasks.models.attachment import REFERENCE
from support.elsewhere import elsewhere
from support.eventually import eventually
from support.redis_server import RedisServer
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine]

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"
LINES = re.findall(r"^ACL SETUSER .*$", PAGE.read_text(), flags=re.MULTILINE)
SHORT = {"num_predict": 5, "seed": 5}
ENDLESS = {"num_predict": 1_000_000}
USERS = {"worker", "producer", "reader"}
#: a reader shows what workers hold, and kombu runs a script; Redis 6 gives a key to read and write
MAY = {("reader", "HGETALL"), ("reader", "EVALSHA"), ("reader", "SCRIPT"), ("producer", "SET")}


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        with running.client() as admin:
            for line in LINES:
                admin.execute_command(*line.split())
        yield running


@pytest.fixture(scope="module")
def places(server):
    """An app for each user."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(elsewhere(f"redis://{name}:change-me@127.0.0.1:{server.port}/0"))
            for name in USERS
        }


@pytest.fixture(scope="module")
def worker(places, node, tmp_path_factory):
    place = places["worker"]
    with WorkerProcess(
        tmp_path_factory.mktemp("acl"),
        at=place.app,
        mingle=True,
        GAELP_BROKER_URL=place.url,
        GAELP_OLLAMA_NODES=node,
        GAELP_NUM_PARALLEL="2",
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def denied(server):
    """What was refused during a test, by user; a test takes away what it expects."""
    with server.client() as admin:
        admin.acl_log_reset()
        told: list[tuple[str, str]] = []
        yield told
        told += [(entry["username"], f"{entry['reason']} {entry['object']}") for entry in admin.acl_log()]
    # what is done without: a worker asks INFO where CONFIG is refused, redis-py tells its name in vain
    harmless = {"command config|get", "command config", "command client"}
    assert [each for each in told if each[1] not in harmless] == []


def test_the_page_describes_each_user_once():
    assert sorted(line.split()[2] for line in LINES) == sorted(USERS)


def test_the_whole_story_runs_under_these_users(places, worker):
    producer = places["producer"]
    handle = producer.invoke("Hi", options=SHORT)
    assert "".join(handle.stream(timeout=20)) == handle.get(timeout=20)["text"]
    endless = producer.invoke("Never stop", options=ENDLESS)
    next(endless.stream(timeout=20))
    endless.cancel()
    assert endless.get(timeout=20)["stop_reason"] == "cancelled"
    later = producer.app.send_task(
        "gaelp.invoke_agent", ["Hi"], {"options": SHORT}, queue="interactive", countdown=1
    )
    assert later.get(timeout=30)["stop_reason"] == "length"
    eventually(lambda: not places["worker"].app.redis.hlen(places["worker"].app.keys.unacked))
    assert worker.process.poll() is None


def test_what_a_producer_lays_beside_its_message_is_read_and_taken_away(places, worker):
    app = places["producer"].app
    long = json.dumps({"prompt": "Hi", "options": SHORT}).encode()
    reference = attachments.put(app.redis, app.keys, "long", long)
    sent = app.send_task(
        "gaelp.invoke_agent",
        kwargs={"agent": "chat"},
        queue="interactive",
        task_id="long",
        headers={REFERENCE: reference.model_dump()},
    )
    attachments.keep(app.redis, app.keys, "long", reference)
    assert sent.get(timeout=20)["stop_reason"] == "length"
    eventually(lambda: not app.redis.exists(app.keys.attachment("long", reference.place)))


def test_a_chord_of_a_producer_ends(places, worker):
    app = places["producer"].app
    header = [
        app.signature("gaelp.invoke_agent", args=("Hi",), kwargs={"options": SHORT}, queue="interactive")
        for _ in range(2)
    ]
    body = app.signature(
        "gaelp.invoke_agent", args=("Sum up",), kwargs={"options": SHORT}, queue="interactive", immutable=True
    )
    ended = chord(header, body, app=app).apply_async()
    assert ended.get(timeout=60)["stop_reason"] == "length"


def test_dead_letters_are_seen_by_the_reader_and_replayed_by_the_workers_user(places, server, worker):
    with server.client() as admin:
        admin.lpush("interactive", "no message")
    eventually(lambda: dead_letters.count(places["reader"].app) == 1)
    [letter] = dead_letters.listed(places["reader"].app, most=5)
    assert dead_letters.purge(places["worker"].app, [letter.id]) == 1


def test_the_reader_asks_workers_and_sees_their_nodes(places, worker):
    app = places["reader"].app
    assert app.control.inspect([worker.name], timeout=5).ping() == {worker.name: {"ok": "pong"}}
    assert list(app.redis.scan_iter(match=app.keys.node("*")))


@pytest.mark.parametrize("user", ["producer", "reader"])
@pytest.mark.parametrize(
    "command",
    [
        ("EVAL", "return 1", 0),
        ("EVALSHA", "0" * 40, 0),
        ("SCRIPT", "LOAD", "return 1"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("HGETALL", "gaelp:unacked"),
        ("SET", "gaelp:claims:x", 9),
        ("GET", "somebody:else"),
    ],
    ids=lambda command: command[0],
)
def test_what_a_user_is_not_for_is_refused(places, server, denied, user, command):
    if (user, command[0]) in MAY:
        return
    with pytest.raises(redis_py.exceptions.NoPermissionError):
        places[user].app.redis.execute_command(*command)
    with server.client() as admin:
        admin.acl_log_reset()


@pytest.mark.parametrize(
    "command", [("FLUSHALL",), ("SCRIPT", "FLUSH"), ("KEYS", "*"), ("CONFIG", "SET", "a", "b")]
)
def test_a_worker_cannot_harm_what_is_not_its_own(places, server, command):
    with pytest.raises(redis_py.exceptions.NoPermissionError):
        places["worker"].app.redis.execute_command(*command)
    with server.client() as admin:
        admin.acl_log_reset()
