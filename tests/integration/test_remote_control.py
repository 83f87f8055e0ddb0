"""`celery inspect` and `celery control` from plain celery, and the programs `celery worker` and `beat`."""

import os
import subprocess
import sys

import pytest

from gaelp_tasks import app
from support.eventually import eventually
from support.service_process import Service
from support.worker import WorkerProcess

#: the first one installs a plain celery
pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def service(plain_python, broker, tmp_path_factory):
    return Service(plain_python, broker.url, tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def remote(service, worker):
    return service.calls("remote")


def test_inspect_tells_what_runs_and_what_waits(remote):
    assert remote["ping"] == {"ok": "pong"}
    assert remote["active"] == [True]
    assert remote["scheduled"] == [], "what is not due waits in Redis"
    assert remote["query"] == ["active"]
    assert remote["reserved"] == [], "what this worker holds, it runs"
    declared = {"background", "batch", "interactive", "system"}
    assert declared <= {*remote["queues"]}
    assert {"background.any", "batch.any", "interactive.any"} <= {*remote["queues"]}
    assert "gaelp.invoke_agent" in remote["registered"]


def test_inspect_shows_no_prompt_and_a_real_process_id(remote):
    assert remote["hidden"] == [False] * 4
    assert remote["pid"] is True


def test_the_pool_grows_and_shrinks_and_says_so(remote):
    assert remote["slots"] == [
        4,
        [{"ok": "pool will grow"}, 7],
        [{"ok": "pool will shrink"}, 2],
        [{"ok": "pool will grow"}, 4],
    ]


def test_a_time_limit_set_from_afar_holds_for_what_comes_next(remote):
    assert "ok" in remote["time limit"]
    assert remote["under the limit"]["value"]["stop_reason"] == "deadline"
    assert remote["limits that are none"]["value"]["stop_reason"] == "length"


def test_a_rate_limit_set_from_afar_holds(remote):
    assert "ok" in remote["rate limit"]
    assert {outcome["value"]["stop_reason"] for outcome in remote["at the rate"]} == {"length"}
    assert remote["took a second"] is True


def test_a_queue_can_be_left_and_taken_up_again(remote):
    assert remote["not consumed"] == ["PENDING", 1]
    assert remote["consumed again"]["value"]["tier"] == "background"


def test_what_cannot_be_done_is_said(remote):
    assert [list(answer) for answer in remote["refused"]] == [["error"]] * 4
    assert "pool_grow" in remote["refused"][0]["error"]


def test_a_worker_shut_down_from_afar_ends_its_run_first(service, broker, node, worker, tmp_path):
    settings = {"GAELP_BROKER_URL": broker.url, "GAELP_OLLAMA_NODES": node}
    with WorkerProcess(tmp_path, "--queues=leaving", name="leaving", **settings) as leaving:
        told = service.calls("shutdown", "leaving")
        assert leaving.wait(within_s=30) == 0
    assert told["running"]["value"]["usage"]["completion_tokens"] == 300


def test_a_worker_told_to_autoscale_does_not_start_and_says_why(broker, tmp_path):
    program = celery(tmp_path, broker, "--app=gaelp_tasks", "worker", "--autoscale=4,1")
    assert program.wait(timeout=30) == 1
    assert "pool_grow" in (tmp_path / "celery.log").read_text().splitlines()[-1]


def celery(folder, broker, *arguments):
    with (folder / "celery.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments, "--loglevel=INFO"],
            env=os.environ
            | {
                "GAELP_BROKER_URL": broker.url,
                "GAELP_DATABASE_URL": f"sqlite:///{folder.with_suffix('.db')}",
                "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
                "PYTHONUNBUFFERED": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


OWN_SCHEDULE = """
from gaelp_tasks import app

app.conf.beat_schedule = {
    "every second": {
        "task": "gaelp.embed", "schedule": 1.0, "args": [["x", "y", "z"]], "options": {"queue": "batch"},
    }
}
"""


def test_celery_beat_runs_our_scheduler_with_the_entries_of_an_app_of_yours(broker, worker, tmp_path):
    (tmp_path / "own_schedule.py").write_text(OWN_SCHEDULE)
    program = celery(tmp_path, broker, "--app=own_schedule:app", "beat", "--max-interval=1")
    try:
        eventually(lambda: 3 in vectors(), within_s=30, what="an embedding for the schedule")
    finally:
        program.terminate()
        program.wait(timeout=10)
    assert sorted(path.name for path in tmp_path.glob("*")) == ["celery.log", "own_schedule.py"], (
        "it keeps no file of its own"
    )


def vectors():
    """How many vectors each result in Redis has."""
    for key in app.redis.scan_iter(match="celery-task-meta-*"):
        result = app.backend.get_task_meta(key.removeprefix("celery-task-meta-"))["result"]
        yield len(result.get("embeddings", ())) if isinstance(result, dict) else 0


def test_celery_beat_with_nothing_else_starts_ours(broker, tmp_path):
    program = celery(tmp_path, broker, "--app=gaelp_tasks", "beat")
    try:
        said = eventually(lambda: begun(tmp_path / "celery.log"), within_s=30, what="beat has begun")
    finally:
        program.terminate()
        code = program.wait(timeout=10)
    assert "gaelp_beat.scheduler.Scheduler" in said
    assert code == 0, (tmp_path / "celery.log").read_text()


def begun(log):
    """What beat has said, once it has its schedule: ended earlier, Celery's own imports break off loudly."""
    said = log.read_text()
    return said if "Schedule: " in said else ""
