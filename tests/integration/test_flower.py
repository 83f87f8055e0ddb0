"""`gaelp flower` on a real Redis beside a real worker: who gets in, what is shown, what may be done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gaelp_tasks import app, invoke_agent
from support.flower import LOGIN, SCENE, WAITING, WORD, FlowerProcess, play, shown

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

READS = (
    *("/", "/workers", "/workers?json=1", "/tasks", "/broker", "/login", "/logout", "/nothing", "/metrics"),
    *("/static/js/flower.js", "/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length"),
    *("/worker/{worker}", "/task/{id}", "/api/task/info/{id}", "/api/task/result/{id}"),
    "/tasks/datatable?draw=1&start=0&length=50&order[0][column]=0&columns[0][data]=name",
)
WRITES = (
    *("/api/worker/shutdown/{worker}", "/api/worker/pool/restart/{worker}"),
    *("/api/worker/pool/grow/{worker}?n=1", "/api/worker/pool/shrink/{worker}?n=1"),
    *("/api/worker/pool/autoscale/{worker}?min=1&max=2", "/api/task/abort/{id}"),
    *(
        "/api/worker/queue/add-consumer/{worker}?queue=x",
        "/api/worker/queue/cancel-consumer/{worker}?queue=x",
    ),
    *("/api/task/revoke/{id}?terminate=true", "/api/task/rate-limit/gaelp.embed", "/login"),
    *("/api/task/timeout/gaelp.embed", "/api/task/apply/gaelp.embed", "/api/task/async-apply/gaelp.embed"),
    *("/api/task/send-task/gaelp.embed", "/tasks", "/a/new/one"),
)


@pytest.fixture
def scene(start_worker, node, broker, tmp_path):
    """A worker, a Flower that only looks, and what happened before them."""
    worker = start_worker(GAELP_OLLAMA_NODES=node, **SCENE)
    with FlowerProcess(tmp_path, broker.url) as flower:
        flower.watches(worker)
        yield worker, flower, play(broker.url, worker, shown(flower))


def test_it_shows_how_everything_fares_to_whoever_has_the_login_and_no_word_of_any_text(scene):
    worker, flower, played = scene
    every_id = [one for ids in played for one in ids]
    fill = {"worker": worker.name, "id": played.running[0]}

    for path in READS:
        for login in (None, ("gaelp", "wrong"), ("", "")):
            refused = flower.get(path.format(**fill), login=login)
            assert refused.status_code == 401, path
            assert refused.headers["WWW-Authenticate"].startswith("Basic ")
            assert refused.text.startswith("Login needed")
    assert flower.get("/healthcheck", login=None).text == "OK"

    flower.get("/api/workers", params={"refresh": 1, "workername": worker.name})
    paths = [*READS, *(f"/{kind}/{one}" for one in every_id for kind in ("task", "api/task/info"))]
    paths += [f"/api/task/result/{one}" for one in every_id]
    for path in paths:
        told = flower.get(path.format(**fill))
        assert told.status_code == (404 if path in {"/login", "/nothing"} else 200), (path, told.text)
        assert WORD not in told.text, path
    assert WORD not in flower.log()

    queues = flower.get("/api/queues/length").json()["active_queues"]
    lengths = {queue["name"]: queue["messages"] for queue in queues}
    assert {name: lengths[name] for name in WAITING} == WAITING
    tasks = flower.tasks()
    assert set(every_id) <= set(tasks)
    for ids, state in zip(played, ("SUCCESS", "FAILURE", "STARTED", "PENDING"), strict=True):
        assert {tasks[one]["state"] for one in ids} == {state}
    own, embedded, plain = (tasks[one] for one in played.done)
    assert own["kwargs"].startswith("agent=chat ")
    assert plain["kwargs"].split()[0] == "agent=echo"
    assert (own["args"], own["result"]) == ("()", "<length, 5 tokens>")
    assert "tier=interactive" in embedded["kwargs"]
    fault, syntax = (tasks[one] for one in played.failed)
    assert (fault["exception"], syntax["exception"]) == ("LookupError", "SyntaxError")
    assert "support/flower.py" in fault["traceback"]
    result = flower.get(f"/api/task/result/{played.done[0]}").json()
    assert (result["state"], result["result"]) == ("SUCCESS", "<length, 5 tokens>")
    active = flower.get("/api/workers").json()[worker.name]["active"]
    assert {(one["id"], one["args"], one["kwargs"].split()[0]) for one in active} == {
        (one, "()", "agent=echo") for one in played.running
    }

    for path in WRITES:
        for login, status in ((None, 401), (LOGIN, 403)):
            assert flower.ask("POST", path.format(**fill), login=login).status_code == status, path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert flower.ask(method, "/api/tasks").status_code == 403
    assert flower.ask("POST", READS[-1]).status_code == 200, "the list of tasks is read this way"
    assert all(worker.runs(one) for one in played.running)

    flower.process.send_signal(signal.SIGTERM)
    assert flower.process.wait(10) == 0


def test_with_control_terminate_is_cancel_and_keeps_the_text(start_worker, node, broker, tmp_path):
    worker = start_worker(GAELP_OLLAMA_NODES=node, **SCENE)
    with FlowerProcess(tmp_path, broker.url, "--control") as flower:
        flower.watches(worker)
        handle = invoke_agent.delay(f"{WORD} without end", options={"num_predict": 100_000})
        shown(flower)(handle.id, "STARTED")
        next(handle.stream(timeout=20))
        told = flower.ask("POST", f"/api/task/revoke/{handle.id}?terminate=true")
        assert told.status_code == 200, told.text
        result = handle.get(timeout=20)
        assert result["stop_reason"] == "cancelled"
        assert result["text"]

        applied = flower.ask(
            "POST",
            "/api/task/apply/gaelp.invoke_agent",
            json={"args": [WORD], "kwargs": {"options": {"num_predict": 3}}},
        )
        assert applied.json()["result"] == "<length, 3 tokens>"
        stolen = flower.ask("POST", "/api/task/apply/gaelp.embed", json={"args": ["a"], "task_id": handle.id})
        assert result["text"] not in stolen.text
        assert flower.ask("POST", f"/api/task/revoke/{handle.id}", login=None).status_code == 401
        assert worker.process.poll() is None


def test_queues_are_found_under_a_namespace_and_in_every_step_of_priority(broker, tmp_path):
    names = ("team:interactive", "team:batch", "team:batch\x06\x163", "team:batch\x06\x169", "interactive")
    for name in names:
        app.redis.rpush(name, "{}")
    try:
        with FlowerProcess(tmp_path, broker.url, GAELP_NAMESPACE="team:") as flower:
            queues = flower.get("/api/queues/length").json()["active_queues"]
    finally:
        app.redis.delete(*names)
    assert {queue["name"]: queue["messages"] for queue in queues} == {
        "interactive": 1,
        "batch": 3,
        "background": 0,
        "system": 0,
    }


def test_composes_own_check_finds_it_unwell_once_redis_does_not_answer_it(broker, tmp_path):
    compose = YAML(typ="safe").load(Path(__file__).parents[2] / "compose.yaml")
    [_, _, *check] = compose["services"]["flower"]["healthcheck"]["test"]
    (tmp_path / "login").write_text(":".join(LOGIN) + "\n")
    with FlowerProcess(tmp_path, broker.url) as flower:

        def well(login):
            script = check[1].replace("/run/secrets/flower_login", str(tmp_path / login))
            script = script.replace("5555", str(flower.port)).replace("timeout=5", "timeout=2")
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, check=False, timeout=30
            )
            return done.returncode == 0

        assert well("login")
        broker.freeze()
        try:
            assert flower.get("/healthcheck", login=None).status_code == 200, "it lives"
            assert not well("login")
        finally:
            broker.thaw()


def test_an_option_that_cannot_be_is_one_sentence(broker, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gaelp_tasks.cli", "flower", "--max_tasks=many"],
        env={**os.environ, "GAELP_BROKER_URL": broker.url, "GAELP_FLOWER_LOGIN": "me:pw", "COLUMNS": "300"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Flower refuses --max_tasks=many" in done.stderr
    assert "Traceback" not in done.stderr
