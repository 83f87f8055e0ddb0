"""The users that docs/redis.md describes, made by its very lines, can do what they are for and no more."""

import asyncio
import json
import re
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest
import redis as redis_py
from celery import chord

from gaelp_beat.leader import Leader, script
from gaelp_beat.previous import Previous
from gaelp_beat.sweeper import Sweeper
from gaelp_tasks import attachments, dead_letters
from gaelp_tasks.cli import answer
from gaelp_tasks.cordons import Wish
from gaelp_tasks.db.database import Database
from gaelp_tasks.models.acceptance import Submission
from gaelp_tasks.models.attachment import REFERENCE
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.services import nodes
from gaelp_tasks.services.accepting import Accepting
from gaelp_tasks.services.invocations import Invocations
from gaelp_tasks.services.reading import read
from gaelp_tasks.services.relay import Relay
from gaelp_tasks.survey import Survey
from gaelp_tasks.tasks import accepted
from support.elsewhere import elsewhere
from support.eventually import eventually
from support.redis_server import RedisServer, redis_7_binary
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine]

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"
LINES = re.findall(r"^ACL SETUSER .*$", PAGE.read_text(), flags=re.MULTILINE)
SHORT = {"num_predict": 5, "seed": 5}
ENDLESS = {"num_predict": 1_000_000}
USERS = ("worker", "beat", "producer", "api", "reader", "metrics", "backup")
#: who may do what; every other user is refused. Ids are known to whoever asked, and cannot be looked up.
MAY = {
    # queues
    "LPUSH interactive m": "worker beat producer api",
    "LPUSH batch.llama3_1b m": "worker beat producer api",
    "RPUSH background m": "worker beat",
    "LPUSH system m": "worker beat api",
    "LPUSH celery m": "worker beat",
    "LPUSH somebody-elses m": "",
    "LLEN interactive": "worker beat producer api reader metrics",
    "LRANGE batch.llama3_1b 0 -1": "worker beat api reader metrics",
    "LINDEX interactive 0": "worker beat",
    "GETRANGE interactive 0 1": "worker beat",
    "RPOP interactive": "worker",
    "LPOP batch.llama3_1b": "worker",
    "BRPOP interactive 1": "worker",
    "LMOVE interactive batch LEFT LEFT": "worker",
    "LTRIM interactive 1 0": "worker",
    "LREM interactive 0 m": "worker",
    "DEL interactive": "worker",
    "UNLINK batch.llama3_1b": "worker",
    "PEXPIRE interactive 1": "worker",
    "RENAME interactive gaelp:x": "worker",
    "SET interactive x": "worker",
    # what workers hold, what waits for its time, and dead letters
    "HGETALL gaelp:unacked": "worker beat api reader metrics",
    "HVALS gaelp:unacked": "worker beat api reader",
    "DEL gaelp:unacked": "worker beat",
    "HDEL gaelp:unacked x": "worker beat",
    "ZREM gaelp:leases x": "worker beat",
    "ZADD gaelp:leases 1 x": "worker beat",
    "ZADD gaelp:parked XX 0 x": "worker beat producer api",
    "ZREM gaelp:parked x": "worker beat",
    "ZRANGE gaelp:parked 0 -1": "worker beat api reader",
    "HGET gaelp:parked:messages x": "worker beat api reader",
    "HGETALL gaelp:dead:messages": "worker beat api reader",
    "DEL gaelp:dead": "worker beat",
    "LPOP gaelp:suspects": "worker beat",
    "SADD gaelp:queues batch.m": "worker beat producer api",
    "SREM gaelp:queues batch.m": "worker beat",
    "SMEMBERS gaelp:queues": "worker beat api reader metrics",
    # one invocation
    "GET celery-task-meta-x": "worker beat producer api reader",
    "SETEX celery-task-meta-x 9 {}": "worker beat",
    "DEL celery-task-meta-x": "worker beat producer api",
    "XRANGE gaelp:stream:x - +": "worker beat producer api reader metrics",
    "XADD gaelp:stream:x * t word": "worker beat",
    "DEL gaelp:stream:x": "worker beat producer api",
    "SET gaelp:attachment:x:y text": "worker beat producer api",
    "GET gaelp:attachment:x:y": "worker beat reader",
    "GETRANGE gaelp:attachment:x:y 0 9": "worker beat",
    "SET gaelp:attachment:x:y text GET": "worker beat",
    "DEL gaelp:attachment:x:y": "worker beat",
    "SET gaelp:cancel:x user": "worker beat producer api",
    "SET gaelp:claims:x 9": "worker beat api",
    "GET gaelp:asked:x": "worker beat producer api reader",
    "XRANGE gaelp:history - +": "worker beat api reader",
    "XLEN gaelp:history": "worker beat api reader metrics",
    # who works
    "SET gaelp:cordon:w hand-back": "worker beat api",
    "SET gaelp:beat:leader me": "worker beat",
    "SET gaelp:node:w:url {}": "worker beat",
    "GET gaelp:node:w:url": "worker beat api reader metrics",
    "PUBLISH gaelp:cancellations x": "worker beat producer api",
    "PUBLISH /0.celery.pidbox x": "worker beat reader",
    "SUBSCRIBE celery-task-meta-x": "worker beat producer api reader",
    "PSUBSCRIBE celery-task-meta-*": "worker beat reader",
    "PSUBSCRIBE /0.celeryev/*": "worker reader",
    "PUBLISH /0.celeryev/task.sent x": "worker beat producer api",
    "PUBLISH /0.celeryev/worker.heartbeat x": "worker",
    "SADD _kombu.binding.interactive x": "worker beat producer api",
    "DEL _kombu.binding.interactive": "worker beat",
    "DEL _kombu.binding.reply.celery.pidbox": "worker beat reader",
    # the server
    "SCAN 0": "worker beat api reader metrics",
    "INFO": "worker beat api reader backup",
    "EVAL return 0": "worker beat",
    "EVALSHA x 0": "worker beat api reader metrics",
    "SCRIPT LOAD x": "worker beat api reader metrics",
    "CLIENT LIST": "worker beat",
    "SYNC": "backup",
    "BGSAVE": "backup",
    "GET somebody:else": "",
    # the API
    "SET gaelp:accepted:life x NX": "worker beat api",
    "DEL gaelp:asked:x": "worker beat api",
    "XREAD COUNT 9 BLOCK 9 STREAMS gaelp:history 0": "worker api reader",
    "HMGET gaelp:rate:u tokens": "worker beat api reader",
    "HSET gaelp:rate:u tokens 9": "worker beat api",
    "SET gaelp:ticket:x y": "worker beat api",
    "GETDEL gaelp:ticket:x": "worker beat api",
    "GET gaelp:ticket:x": "worker beat reader",
    "PUBLISH gaelp:told:1 x": "worker api",
    "SUBSCRIBE gaelp:told:1": "worker api",
    "LPUSH training m": "worker beat api",
    **dict.fromkeys(
        (
            *("FLUSHALL", "FLUSHDB", "SCRIPT FLUSH", "KEYS *", "CONFIG GET *", "CONFIG SET a b", "ACL LIST"),
            *("MONITOR", "SHUTDOWN", "DEBUG SLEEP 0", "REPLICAOF no one", "CLIENT KILL 127.0.0.1:1", "SAVE"),
            *("SWAPDB 0 1", "FUNCTION FLUSH", "SORT interactive", "MIGRATE h 1 k 0 1", "RESTORE k 0 v"),
        ),
        "",
    ),
}


@pytest.fixture(scope="module")
def server():
    with RedisServer(redis_7_binary()) as running:
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
    key = app.keys.attachment("long", reference.place)
    eventually(lambda: not places["worker"].app.redis.exists(key))


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


def test_the_command_line_goes_on_where_a_producer_may_not_look_for_workers(
    places, server, denied, monkeypatch, capsys
):
    monkeypatch.setattr(answer, "app", places["producer"].app)
    answer.warn_without_worker(Tier.INTERACTIVE)
    assert "".join(capsys.readouterr()) == ""
    with server.client() as admin:
        assert [entry["object"] for entry in admin.acl_log()][:1] == ["scan"]
        admin.acl_log_reset()


async def test_the_api_accepts_publishes_hears_of_the_end_and_looks_after_nodes(places, worker, api_sql):
    app, db = places["api"].app, Database(api_sql)
    accepting = Accepting(app, db, most_waiting=9)
    works = [asyncio.ensure_future(work.run()) for work in (accepting, Relay(app, db, keep_s=9))]
    mine = Invocations(app, db, Caller(name="anna"))
    row = await accepting.submit(Submission(prompt="Hi", options=SHORT), Caller(name="anna"), key="k")
    async with aclosing(read(app, lambda: mine.row(row.id), None)) as told:
        assert [one.event async for one in told if one.event][-1] == "end"
    while not (await mine.row(row.id)).is_over:
        await asyncio.sleep(0.01)
    lost = await accepting.submit(Submission(prompt="Hi", options=ENDLESS), Caller(name="anna"))
    while (await mine.show(lost.id))["state"] != "running":
        await asyncio.sleep(0.01)
    await mine.cancel(lost.id)
    while not (await mine.row(lost.id)).is_over:
        await asyncio.sleep(0.01)
    accepted.send(app, [row._replace(publications=1)], again=True)
    assert accepted.missing(app, ["nobody"]) == {"nobody"}
    assert [one["worker"] for one in nodes.announced(app)] == [worker.name]
    assert nodes.wish(app, worker.name, Wish.CORDON)["state"] == "cordoned"
    assert nodes.lift(app, worker.name)["state"] == "open"
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    await db.close()


def test_a_producer_revokes_by_our_app_without_calling_workers(places, worker, server, denied):
    app = places["producer"].app
    endless = places["producer"].invoke("Never stop", options=ENDLESS)
    next(endless.stream(timeout=20))
    app.control.revoke(endless.id)
    assert endless.get(timeout=20)["stop_reason"] == "cancelled"
    with server.client() as admin:
        assert {entry["object"] for entry in admin.acl_log()} <= {"/0.celery.pidbox", "client"}
        admin.acl_log_reset()


def test_a_reader_waits_for_answers_that_do_not_come_and_hears_events(places, worker):
    app = places["reader"].app
    assert app.control.inspect(["nobody@nowhere"], timeout=0.5).ping() is None
    heard = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        events = receiver.itercapture(timeout=20, wakeup=False)
        next(events)  # a worker's heartbeat: it listens
        sent = places["producer"].invoke("Hi", options=SHORT)
        next(None for _ in events if any(one.get("uuid") == sent.id for one in heard))
        events.close()
        connection.default_channel.sweep_bindings()


def test_the_exporter_looks_at_everything(places, worker, server):
    with server.client() as admin:
        admin.lpush("batch.nowhere", json.dumps({"headers": {"id": "a", "gaelp_published_at": 1.0}}))
        admin.sadd("gaelp:queues", "batch.nowhere")
    found = Survey(places["metrics"].app).take()
    assert found.loads["batch", "nowhere"].oldest_s > 1e6
    assert [node.worker for node in found.nodes] == [worker.name]
    with server.client() as admin:
        admin.delete("batch.nowhere")


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery, which stores the failure
def test_a_beat_leads_sweeps_tells_of_poison_looks_back_and_revokes(places, worker, server):
    app = places["beat"].app
    leader = Leader(app.redis, app.keys)
    assert leader.lead()
    publish = app.redis.register_script(script("publish"))
    assert publish(keys=[app.keys.beat, app.keys.beat_published, "batch.nowhere"], args=["x"] * 5) == -1
    app.send_task("shop.count", queue="celery")
    with server.client() as admin:
        about = {"id": "bad", "queue": "batch.nowhere", "alone": True}
        admin.hset("gaelp:unacked", "gone|1", json.dumps(about) + "\n{}")
        admin.zadd("gaelp:leases", {"gone|1": 1})
        admin.set("gaelp:deaths:bad", 99)
        due = {"id": "due", "queue": "celery"}  # no worker takes it there
        admin.hset("gaelp:parked:messages", "due", json.dumps(due) + "\n{}")
        admin.zadd("gaelp:parked", {"due": 1})
    previous = Previous(app, app.redis, answer_s=5.0)
    schedule = Schedule(name="s", interval_s=1, kwargs={"prompt": "Hi"})
    assert not previous.goes_on("s", "somebody", schedule)
    sweeper = Sweeper(app)
    sweeper.sweep()
    assert dead_letters.count(app) == 1
    eventually(lambda: places["producer"].handle("bad").status == "FAILURE")
    assert dead_letters.purge(app, [letter.id for letter in dead_letters.listed(app, most=5)]) == 1
    app.control.revoke("somebody")
    leader.resign()
    sweeper._redis.close()
    with server.client() as admin:
        assert admin.llen("celery") == 2
        admin.delete("celery")


@pytest.mark.parametrize("command", MAY)
def test_a_user_may_do_what_it_is_for_and_is_refused_the_rest(server, command):
    with server.client() as admin:
        answers = {user: admin.execute_command("ACL DRYRUN", user, *command.split()) for user in USERS}
    assert " ".join(user for user in USERS if answers[user] == "OK") == MAY[command]
    assert all("no permissions" in answer for answer in answers.values() if answer != "OK")


@pytest.mark.parametrize("user", ["reader", "metrics"])
@pytest.mark.parametrize("line", ["'RPOP', 'interactive'", "'DEL', KEYS[1]", "'LPUSH', KEYS[1], 'm'"])
def test_a_script_may_do_no_more_than_its_user(places, server, denied, user, line):
    redis = places[user].app.redis
    sha = redis.script_load(f"return redis.call({line})")
    with server.client() as admin:
        admin.lpush("background.x", "kept")
        with pytest.raises(redis_py.exceptions.ResponseError, match="executing the script can't"):
            redis.evalsha(sha, 1, "background.x")
        assert admin.lrange("background.x", 0, -1) == ["kept"]
        admin.delete("background.x")
        admin.acl_log_reset()


def test_the_exporters_user_has_no_command_that_writes(server):
    with server.client() as admin:
        writing = {name.upper() for name in admin.execute_command("COMMAND LIST FILTERBY ACLCAT write")}
    [line] = [line for line in LINES if line.split()[2] == "metrics"]
    given = {word.strip("()")[1:].upper() for word in line.split() if word.startswith("+")}
    assert {"DEL", "RPOP", "XADD"} <= writing
    assert {"SCAN", "EVALSHA"} <= given
    assert not given & writing


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("producer", "RPOP interactive"),
        ("producer", "LRANGE interactive 0 -1"),
        ("reader", "RPOP interactive"),
        ("reader", "DEL gaelp:unacked"),
        ("metrics", "DEL interactive"),
        ("beat", "RPOP interactive"),
        ("backup", "GET interactive"),
        ("worker", "FLUSHALL"),
    ],
)
def test_what_a_user_is_not_for_is_refused_indeed(places, server, denied, user, command):
    with pytest.raises(redis_py.exceptions.NoPermissionError):
        places[user].app.redis.execute_command(*command.split())
    with server.client() as admin:
        admin.acl_log_reset()
