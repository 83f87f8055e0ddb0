"""What a real worker tells the history, and that nothing is missing when workers are killed."""

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from celery.exceptions import TaskRevokedError

from gaelp_tasks import app, embed, endings, invoke_agent
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.history import History
from gaelp_tasks.dead_letters import POISON, give_up
from gaelp_tasks.errors import ModelMissing
from gaelp_tasks.runtime import Runtime
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

DIES_AFTER_ITS_RESULT = """
import os, signal
from celery.signals import task_success
@task_success.connect(weak=False)
def die(sender, **_):
    if sender.name == "gaelp.invoke_agent":
        os.kill(os.getpid(), signal.SIGKILL)
"""
SHORT = {"num_predict": 5, "seed": 7}
ENDLESS = {"num_predict": 100_000}


@pytest.fixture
def loop():
    made = Runtime()
    yield made
    made.close()


@pytest.fixture
def kept(tmp_path, loop):
    """The rows of a database, by id: `kept()`; `kept.url` is its address."""
    url = f"sqlite:///{tmp_path}/gaelp.db"
    db = Database(url)
    loop.run(db.migrate())

    def read():
        if app.redis.exists(app.keys.history) and not app.redis.exists(app.keys.queue("system")):
            app.send_task("gaelp.maintenance.record_history", queue="system")
        return {row.id: row for row in loop.run(History(db, None).listed(most=10_000))}

    read.url = url
    yield read
    loop.run(db.close())


def test_every_end_becomes_a_row(start_worker, node, kept):
    worker = start_worker(
        GAELP_OLLAMA_NODES=node,
        GAELP_DATABASE_URL=kept.url,
        GAELP_HISTORY_TEXT_BYTES="12",
        GAELP_NUM_PARALLEL="2",
    )
    done = invoke_agent.delay("Why is the sky blue?", tier="batch", priority=7, tenant="me", options=SHORT)
    answer = done.get(timeout=60)
    vectors = embed.delay(["a", "b"])
    vectors.get(timeout=60)
    failed = invoke_agent.delay("hi", model="missing:1b", agent="coding")
    with pytest.raises(ModelMissing):
        failed.get(timeout=60)
    cut = invoke_agent.delay("A long story", options=ENDLESS, tier="background")
    next(cut.stream(timeout=60))
    cut.cancel()
    partial = cut.get(timeout=60)
    assert partial["stop_reason"] == "cancelled"
    late = invoke_agent.apply_async(["hi"], expires=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(TaskRevokedError):
        late.get(timeout=60)

    rows = eventually(lambda: len(rows := kept()) == 5 and rows, what="five rows")
    row = rows[done.id]
    assert (row.state, row.stop_reason, row.task, row.error) == ("done", "length", "gaelp.invoke_agent", "")
    assert (row.tier, row.priority, row.agent, row.tenant) == ("batch", 7, "chat", "me")
    assert (row.model, row.node, row.worker) == (answer["model"], node, worker.name)
    assert (row.claims, row.attempts) == (1, 1)
    usage, timings = answer["usage"], answer["timings"]
    assert (row.prompt_tokens, row.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    told = (row.queued_s, row.load_s, row.first_token_s, row.total_s)
    assert told == tuple(timings[name] for name in ("queued_s", "load_s", "first_token_s", "total_s"))
    assert row.prompt == "Why is the s"
    assert answer["text"].startswith(row.text)
    assert abs(row.finished_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert (rows[vectors.id].task, rows[vectors.id].agent, rows[vectors.id].text) == ("gaelp.embed", "", None)
    assert (rows[failed.id].state, rows[failed.id].agent, rows[failed.id].model) == (
        "failed", "coding", "missing:1b",
    )  # fmt: skip
    assert rows[failed.id].error.startswith("ModelMissing: ")
    assert (rows[cut.id].state, rows[cut.id].stop_reason, rows[cut.id].tier) == (
        "cut",
        "cancelled",
        "background",
    )
    assert rows[cut.id].completion_tokens == partial["usage"]["completion_tokens"]
    assert (rows[late.id].state, rows[late.id].stop_reason) == ("cut", "expired")
    assert "sky" not in worker.log()


def test_a_worker_that_dies_right_after_its_result_has_told_the_end(start_worker, node, kept, tmp_path):
    (tmp_path / "dies_after_its_result.py").write_text(DIES_AFTER_ITS_RESULT)
    worker = start_worker(
        "--include=dies_after_its_result",
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        GAELP_OLLAMA_NODES=node,
    )
    asked = invoke_agent.delay("hi", options=SHORT)
    assert worker.wait(within_s=60) == -signal.SIGKILL
    start_worker(name="next", GAELP_OLLAMA_NODES=node, GAELP_DATABASE_URL=kept.url)
    rows = eventually(kept, what="the row")
    assert (rows.keys(), rows[asked.id].worker) == ({asked.id}, worker.name)


def test_a_dead_letter_is_told_with_its_reason(redis):
    told_to_celery: list[object] = []
    backend = SimpleNamespace(mark_as_failure=lambda *told: told_to_celery.append(told))
    place = SimpleNamespace(backend=backend, redis=redis, keys=app.keys)
    give_up(place, "an-id", POISON)
    assert len(told_to_celery) == 1
    assert [one.ending.id for one in endings.waiting(redis, app.keys, most=9)] == ["an-id"]
    told = endings.waiting(redis, app.keys, most=1)[0].ending
    assert (told.state, told.error) == ("failed", "DeadLettered: it killed the workers that ran it")


def test_nothing_is_missing_and_nothing_is_there_twice_when_workers_are_killed(start_worker, node, kept):
    settings = {"GAELP_OLLAMA_NODES": node, "GAELP_DATABASE_URL": kept.url, "GAELP_NUM_PARALLEL": "4"}
    asked = [invoke_agent.delay(f"Question {number}", tier="batch", options=SHORT).id for number in range(40)]
    for life in range(3):
        worker = start_worker(name=f"life{life}", **settings)
        if life < 2:
            so_far = 10 * (life + 1)
            eventually(lambda so_far=so_far: app.redis.xlen(app.keys.history) + len(kept()) >= so_far)
            worker.send(signal.SIGKILL)
            worker.wait(within_s=20)
    rows = eventually(lambda: len(rows := kept()) >= 40 and rows, within_s=60, what="forty rows")
    assert sorted(rows) == sorted(asked)
    assert {row.state for row in rows.values()} == {"done"}
    for name, row in rows.items():
        result = json.loads(app.redis.get(f"celery-task-meta-{name}"))["result"]
        assert (row.total_s, row.completion_tokens) == (
            result["timings"]["total_s"], result["usage"]["completion_tokens"],
        )  # fmt: skip
    assert app.redis.xlen(app.keys.history) == 0
