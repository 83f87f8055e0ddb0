"""A beat sweeps as workers do: on a real Redis, in this process."""

import json
import threading
from contextlib import suppress

import pytest

from gaelp_beat.scheduler import Scheduler
from gaelp_beat.sweeper import CONNECTION, Sweeper
from gaelp_tasks import app as session_app
from gaelp_tasks import counts
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect, unavailable
from gaelp_tasks.errors import DeadLettered
from gaelp_tasks.queues import lists
from gaelp_tasks.settings import Settings
from gaelp_tasks.sweeping import connection_name
from support.claims import KEYS, QUEUE, claim, holder, message, publish, reasons
from support.eventually import eventually
from support.hole import Hole

pytestmark = pytest.mark.redis


@pytest.fixture
def sweeper(redis):
    made = Sweeper(session_app)
    yield made
    made.stop()
    made._redis.close()


@pytest.fixture
def beat(redis, tmp_path):
    """Of an entry that is due five times a second; `beat(url)` reaches Redis there."""
    made = []

    def start(url):
        app = GaelpApp(Settings(broker_url=url, database_url=f"sqlite:///{tmp_path / 'gaelp.db'}"))
        app.conf.beat_schedule = {
            "often": {"task": "shop.count", "schedule": 0.2, "options": {"queue": "shop"}}
        }
        made.append(Scheduler(app))
        return made[-1]

    yield start
    for one in made:
        one.close()
    session_app.set_current()


def park(redis, task_id="later"):
    """What was parked, and is due."""
    about = json.dumps({"id": task_id, "queue": QUEUE, "at": 0})
    redis.hset(KEYS.parked_messages, task_id, f"{about}\n{message(task_id)}")
    redis.zadd(KEYS.parked, {task_id: 1})


def queued(redis, queue=QUEUE):
    return [json.loads(text)["headers"]["id"] for text in redis.lrange(queue, 0, -1)]


def test_what_is_due_and_what_the_dead_held_comes_into_its_queue_and_is_counted(redis, sweeper):
    publish(message("1"), message("2"))
    claim(holder("dead", ttl_s=0.001), 2)
    park(redis)
    eventually(lambda: sweeper.sweep() or len(queued(redis)) == 3)
    assert queued(redis) == ["later", "2", "1"], "what was held comes first"
    assert not redis.exists(KEYS.unacked, KEYS.leases, KEYS.parked, KEYS.parked_messages)
    assert eventually(lambda: counts.counted(session_app)) == {counts.REAPED: 2}


def test_a_holder_whose_connection_is_gone_is_not_waited_for_and_one_that_lives_is(redis, sweeper):
    publish(message("1"), message("2"))
    for name in ("dying", "living"):
        claim(holder(name))
    connections = [connect(session_app.settings, name=connection_name(name)) for name in ("dying", "living")]
    for one in connections:
        one.ping()
    sweeper.sweep()
    connections[0].close()
    eventually(lambda: sweeper.sweep() or queued(redis))
    assert queued(redis) == ["1"]
    assert [tag.partition("|")[0] for tag in redis.zrange(KEYS.leases, 0, -1)] == ["living"]
    connections[1].close()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # by Celery, which stores the failure
def test_who_waits_for_poison_that_a_beat_finds_is_told(redis, sweeper):
    publish(message("1"))
    redis.set(KEYS.claims("1"), 1)
    redis.set(KEYS.deaths("1"), session_app.settings.poison_deaths - 1)
    assert claim(holder("apart")) == []
    assert claim(holder("victim", ttl_s=0.001)) == ["1"]
    eventually(lambda: sweeper.sweep() or reasons() == ["poison"])
    with pytest.raises(DeadLettered, match="it killed the workers that ran it"):
        session_app.AsyncResult("1").get(timeout=20)
    assert eventually(lambda: redis.xlen(KEYS.history)) == 1


def test_a_redis_that_was_away_is_swept_when_it_is_back(redis, sweeper, broker, caplog):
    park(redis)
    broker.stop()
    try:
        for _ in range(3):
            sweeper.sweep()
    finally:
        broker.start()
    assert caplog.text.count("Redis does not serve the sweep") == 1

    def published():
        sweeper.sweep()
        with suppress(*unavailable):  # it reads its file first
            return queued(redis) == ["later"]

    eventually(published)


def test_its_connection_is_no_holders(redis, broker, beat):
    beat(broker.url).tick()
    eventually(lambda: any(one["name"] == CONNECTION for one in redis.client_list()))
    assert not CONNECTION.startswith(connection_name(""))


def test_a_sweep_that_hangs_keeps_no_tick(redis, broker, beat, monkeypatch):
    hangs, over = threading.Event(), threading.Event()

    def hang(_):
        hangs.set()
        over.wait(60)

    monkeypatch.setattr(Sweeper, "sweep", hang)
    one = beat(broker.url)
    try:
        one.tick()
        assert hangs.wait(20)
        eventually(lambda: one.tick() is not None and len(queued(redis, lists("shop")[0])) >= 3)
    finally:
        over.set()


def test_a_tick_that_hangs_keeps_no_sweep(redis, broker, beat, monkeypatch):
    hangs, over = threading.Event(), threading.Event()

    def hang(*_):
        hangs.set()
        over.wait(60)

    monkeypatch.setattr(Scheduler, "_open_sql", hang)
    one = beat(broker.url)
    ticking = threading.Thread(target=one.tick)
    ticking.start()
    try:
        assert hangs.wait(20)
        park(redis)
        eventually(lambda: queued(redis) == ["later"])
    finally:
        over.set()
        ticking.join()


def test_a_half_open_connection_of_the_sweep_is_left_for_another(redis, broker, beat):
    with Hole(broker.port) as hole:
        one = beat(f"redis://127.0.0.1:{hole.port}/0")
        one.tick()
        eventually(lambda: hole.hush(CONNECTION.encode()), what="it is connected")
        park(redis)
        eventually(lambda: one.tick() is not None and queued(redis) == ["later"])
        eventually(lambda: one.tick() is not None and len(queued(redis, lists("shop")[0])) >= 3)
        one.close()
