"""`gaelp batch` with a real worker: a file in, results and errors out, cancelled or closed in between."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app
from gaelp_tasks.cli.app import cli
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.models.batch import task_id
from gaelp_tasks.queues import lists
from gaelp_tasks.tasks.batch import call_for, resume_batches
from gaelp_tasks.tasks.maintenance import prune_batches
from support.eventually import eventually
from support.terminal import CTRL_C, Terminal

pytestmark = [pytest.mark.redis, pytest.mark.engine]

PAGE = Path(__file__).parents[2] / "docs" / "batch.md"
FEW = {"num_predict": 3, "seed": 5}
ENDLESS = {"num_predict": 1_000_000}


@pytest.fixture
def database(tmp_path, monkeypatch):
    """The address of the database of this test's commands, and of its workers."""
    url = f"sqlite:///{tmp_path}/gaelp.db"
    monkeypatch.setattr(app, "settings", app.settings.model_copy(update={"database_url": url}))
    return url


@pytest.fixture
def start(start_worker, database, node):
    def start(**more):
        given = {"GAELP_OLLAMA_NODES": node, "GAELP_NUM_PARALLEL": "4", "GAELP_DATABASE_URL": database}
        return start_worker(**given | more)

    return start


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / f"{uuid4().hex}.jsonl"
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("".join(f"{text}\n" for text in texts))
        return str(path)

    return write


def gaelp(*words, code=0, **how):
    done = CliRunner().invoke(cli, ["batch", *words], catch_exceptions=False, **how)
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def status(batch_id):
    return json.loads(gaelp("status", batch_id, "--json"))


def results(batch_id, *more):
    return [json.loads(line) for line in gaelp("results", batch_id, *more).splitlines()]


def over(batch_id, *, within_s=60):
    states = {"completed", "expired", "cancelled", "failed"}
    found = {}

    def look():
        found.update(status(batch_id))
        return found["state"] in states

    eventually(look, within_s=within_s, what=f"the batch is over: {found}")
    return found


def questions(count, **more):
    return [
        {"custom_id": f"q{number}", "prompt": f"Say {number}", "options": FEW} | more
        for number in range(count)
    ]


def keys_of_lines():
    """What Redis keeps by the ids of invocations."""
    patterns = ("celery-task-meta-*", "gaelp:stream:*", "gaelp:claims:*", "gaelp:holder:*")
    return [key for pattern in patterns for key in app.redis.scan_iter(match=pattern)]


def test_a_file_of_both_forms_is_answered_in_both_forms_and_in_its_order(start, file):
    start()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "seed": 5}
    vectors = {"model": "tiny-embed", "input": ["x", "y"]}
    path = file(
        {"custom_id": "ours", "prompt": "Hi", "options": FEW},
        {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": body},
        "{bad",
        {"custom_id": "embed", "method": "POST", "url": "/v1/embeddings", "body": vectors},
        {"prompt": "Hi", "options": FEW},
        {"custom_id": "nowhere", "prompt": "Hi", "model": "nobody-has-it"},
    )
    batch_id = gaelp("submit", path).strip()
    assert over(batch_id)["counts"] == {
        "total": 6,
        "done": 4,
        "failed": 1,
        "invalid": 1,
        "expired": 0,
        "cancelled": 0,
        "open": 0,
    }
    found = results(batch_id)
    assert [line["custom_id"] for line in found] == ["ours", "chat", "embed", "5"]
    assert found[0]["result"]["tier"] == "batch"
    assert found[1]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert len(found[2]["response"]["body"]["data"]) == 2
    errors = results(batch_id, "--errors")
    assert [(line["custom_id"], line["error"]["line"]) for line in errors] == [(None, 3), ("nowhere", 6)]
    assert errors[1]["error"]["code"] == "ModelMissing"


def test_the_example_of_the_page_runs(start, file):
    start()
    [block] = re.findall(r"^```jsonl\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = block.replace("MODEL", "tiny").splitlines()
    batch_id = gaelp("submit", file(*lines), "--within", "24h").strip()
    assert over(batch_id)["state"] == "completed"
    assert [line["custom_id"] for line in results(batch_id)] == ["sky", "sum", "chat", "vectors"]
    assert results(batch_id, "--errors") == []
    gaelp("remove", batch_id)
    gaelp("status", batch_id, code=1)


def test_many_lines_keep_the_queue_short_and_leave_redis_empty(start, file):
    start(GAELP_BATCH_WINDOW="8")
    batch_id = gaelp("submit", file(*questions(120))).strip()
    longest = 0
    while status(batch_id)["state"] != "completed":
        longest = max(longest, sum(app.redis.llen(name) for name in lists("batch.any")))
    assert 0 < longest <= 8
    assert [line["custom_id"] for line in results(batch_id)] == [f"q{number}" for number in range(120)]
    lines = {task_id(batch_id, f"q{number}") for number in range(120)}
    left = [key for key in keys_of_lines() if key[-36:] in lines]
    assert [key for key in left if "stream" in key] == [], "streams of lines that were told"
    assert {key: app.redis.ttl(key) for key in left if not 0 < app.redis.ttl(key) <= 3600} == {}


def test_a_batch_that_is_cancelled_keeps_what_is_done_and_stops_what_runs(start, file):
    worker = start(GAELP_BATCH_WINDOW="16")
    path = file(*questions(4), *questions(100, options=ENDLESS, custom_id=None))
    batch_id = gaelp("submit", path).strip()
    eventually(lambda: status(batch_id)["counts"]["done"] == 4)
    eventually(
        lambda: sum(snapshot.busy for snapshot in worker.announced().values()) == 4,
        what=f"{worker.announced()} {worker.log()}",
    )
    told = gaelp("cancel", batch_id)
    assert "cancelling" in told
    found = over(batch_id, within_s=20)
    assert (found["state"], found["counts"]["done"], found["counts"]["cancelled"]) == ("cancelled", 4, 100)
    eventually(lambda: sum(snapshot.busy for snapshot in worker.announced().values()) == 0)
    assert len(results(batch_id)) == 4
    assert {line["error"]["code"] for line in results(batch_id, "--errors")} == {"batch_cancelled"}
    assert "already" in CliRunner().invoke(cli, ["batch", "cancel", batch_id]).stderr


def test_a_window_that_closes_keeps_what_is_done(start, file):
    start(GAELP_BATCH_WINDOW="16")
    path = file(*questions(3), *questions(20, options=ENDLESS, custom_id=None))
    batch_id = gaelp("submit", path, "--within", "6s").strip()
    found = over(batch_id, within_s=40)
    assert (found["state"], found["counts"]["done"], found["counts"]["expired"]) == ("expired", 3, 20)


def test_a_batch_waits_for_its_window_parked_and_can_be_cancelled_there(start, file):
    opens = datetime.now(UTC) + timedelta(hours=12)
    window = f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"
    batch_id = gaelp("submit", file(*questions(3)), "--window", window, "--zone", "UTC").strip()
    start()
    eventually(lambda: app.redis.zcard(app.keys.parked) == 1, within_s=60, what="the call is parked")
    found = status(batch_id)
    assert (found["state"], found["windows"], found["counts"]["open"]) == ("in_progress", [window], 3)
    assert found["waits_until"] == f"{opens:%Y-%m-%dT%H:%M}:00+00:00"
    assert f"until {opens:%Y-%m-%d %H:%M} UTC" in gaelp("status", batch_id)
    due_s = app.redis.zrange(app.keys.parked, 0, 0, withscores=True)[0][1] / 1000
    assert abs(due_s - opens.replace(second=0, microsecond=0).timestamp()) < 5
    assert resume_batches() == 0
    gaelp("cancel", batch_id)
    now = datetime.now(UTC)
    is_open = f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"
    other = gaelp("submit", file(*questions(3)), "--window", window, "--window", is_open).strip()
    assert over(other)["counts"]["done"] == 3
    assert over(batch_id)["state"] == "cancelled"


def test_who_waits_is_told_the_end_by_the_exit_code(start, file):
    start()
    told = gaelp("submit", file(*questions(3)), "--wait", "--json")
    assert json.loads(told)["state"] == "completed"
    gaelp("submit", file("{bad"), code=1)


def test_a_bar_is_shown_on_a_terminal_and_ctrl_c_leaves_the_batch_running(
    start, file, broker, tmp_path, database
):
    start(GAELP_BATCH_WINDOW="8")
    command = [sys.executable, "-m", "gaelp_tasks.cli", "batch", "submit", "--wait"]
    env = {
        "GAELP_BROKER_URL": broker.url,
        "GAELP_DATABASE_URL": database,
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    path = file(*questions(3), *questions(20, options=ENDLESS, custom_id=None))
    with Terminal([*command, path], env, tmp_path) as screen:
        screen.expect("in_progress")
        screen.expect("3/23")
        screen.press(CTRL_C)
        screen.expect("It goes on without you: gaelp batch status ")
        batch_id = re.search(r"batch_\w+", screen.expect("--wait"))[0]
        assert screen.process.wait(timeout=20) == 130
    assert status(batch_id)["state"] == "in_progress"
    gaelp("cancel", batch_id)
    assert over(batch_id)["state"] == "cancelled"


def test_a_submission_that_is_interrupted_at_the_terminal_gives_its_batch_up(broker, database, tmp_path):
    command = [sys.executable, "-m", "gaelp_tasks.cli", "batch", "submit", "-"]
    env = {"GAELP_BROKER_URL": broker.url, "GAELP_DATABASE_URL": database}
    with Terminal(command, env, tmp_path) as screen:
        eventually(lambda: "validating" in gaelp("list"), within_s=60)
        screen.enter('{"prompt": "Hi"}')
        screen.press(CTRL_C)
        screen.expect("will run. Submit the file again.")
        assert screen.process.wait(timeout=20) == 130
    assert json.loads(gaelp("list", "--json"))[0]["state"] == "failed"


def test_one_that_is_interrupted_as_its_batch_is_made_gives_it_up_too(database, file, monkeypatch):
    create = Batches.create

    async def interrupted(*args, **how):
        made = await create(*args, **how)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(Batches, "create", interrupted)
    gaelp("submit", file("{}"), code=130)
    assert json.loads(gaelp("list", "--json"))[0]["state"] == "failed"


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_line_of_a_submission_that_is_interrupted_is_told(broker, database, blow):
    program = subprocess.Popen(
        [sys.executable, "-m", "gaelp_tasks.cli", "batch", "submit", "-"],
        env=os.environ | {"GAELP_BROKER_URL": broker.url, "GAELP_DATABASE_URL": database},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for number in range(600):  # more than a piece
            program.stdin.write(json.dumps({"custom_id": f"c{number}", "prompt": "Hi"}) + "\n")
        program.stdin.flush()
        eventually(lambda: '"total": 500' in gaelp("list", "--json"), within_s=60)
        program.send_signal(blow)
        assert program.wait(timeout=20) == 130
        assert "will run. Submit the file again." in program.stderr.read()
    finally:
        program.kill()
        program.wait()
        with suppress(BrokenPipeError):
            program.stdin.close()
        program.stderr.close()
    [found] = json.loads(gaelp("list", "--json"))
    trouble = "Its submission was interrupted: submit the file again."
    assert (found["state"], found["trouble"]) == ("failed", trouble)
    assert (found["counts"]["failed"], found["counts"]["open"]) == (500, 0)
    assert [line["custom_id"] for line in results(found["id"], "--errors")] == [f"c{n}" for n in range(500)]


def test_one_that_was_killed_while_its_file_was_read_says_what_to_do(database, file, monkeypatch):
    monkeypatch.setattr("gaelp_tasks.cli.batch_submission._read_all", lambda ask, batch, *_: batch)
    batch_id = gaelp("submit", file("{}")).strip()
    monkeypatch.setattr("gaelp_tasks.cli.batch_progress.QUIET_S", 0.0)
    assert f"submit the file again, and: gaelp batch cancel {batch_id}" in " ".join(
        gaelp("status", batch_id).split()
    )
    monkeypatch.setattr("gaelp_tasks.tasks.batch.UNREAD_S", 0.0)
    assert resume_batches() == 0
    assert status(batch_id)["state"] == "failed"


def test_a_worker_that_stops_hands_the_batch_on_at_once(start, file):
    first = start(GAELP_DRAIN_GRACE_S="20", GAELP_BATCH_WINDOW="8")
    batch_id = gaelp("submit", file(*questions(300))).strip()
    eventually(lambda: status(batch_id)["counts"]["done"] > 10)
    asked = time.monotonic()
    first.send(signal.SIGTERM)
    assert first.wait(within_s=15) == 0
    assert time.monotonic() - asked < 10, "a conductor does not use up the grace"
    start(name="second", GAELP_BATCH_WINDOW="64")
    assert over(batch_id)["counts"]["done"] == 300
    assert "deaths" not in "".join(app.redis.scan_iter(match="gaelp:deaths:*"))


def test_a_revoked_conductor_is_a_cancelled_batch(start, file):
    start(GAELP_BATCH_WINDOW="4")
    batch_id = gaelp("submit", file(*questions(50, options=ENDLESS))).strip()

    def conductor():
        records = app.redis.hvals(app.keys.unacked)
        heads = [json.loads(record.partition("\n")[2])["headers"] for record in records]
        return next((head["id"] for head in heads if head["task"] == "gaelp.run_batch"), None)

    task_id = eventually(conductor)
    app.control.revoke(task_id, terminate=True)
    assert over(batch_id)["state"] == "cancelled"


def test_more_batches_than_a_worker_conducts_at_once_all_end(start, file):
    start()
    ids = [gaelp("submit", file(*questions(10))).strip() for _ in range(6)]
    assert {over(batch_id)["state"] for batch_id in ids} == {"completed"}


def test_a_batch_whose_message_is_lost_is_called_for_again(start, file, monkeypatch):
    batch_id = gaelp("submit", file(*questions(3))).strip()
    app.redis.flushdb()
    monkeypatch.setattr("gaelp_tasks.tasks.batch.STALE_S", 0.0)
    assert resume_batches() == 1
    start()
    assert over(batch_id)["counts"]["done"] == 3


def test_an_older_call_does_nothing(start, file):
    batch_id = gaelp("submit", file(*questions(30))).strip()
    for _ in range(5):
        call_for(batch_id, "", 0)
    start(GAELP_BATCH_WINDOW="4")
    assert over(batch_id)["counts"]["done"] == 30


def test_a_worker_without_the_database_says_so_and_another_goes_on(start, file, tmp_path):
    broken = tmp_path / "no-folder"
    broken.write_text("")
    blind = start(name="blind", GAELP_DATABASE_URL=f"sqlite:///{broken}/gaelp.db")
    batch_id = gaelp("submit", file(*questions(3))).strip()
    eventually(lambda: "has no database" in blind.log())
    assert "Traceback" not in blind.log()
    blind.send(signal.SIGTERM)
    blind.wait(within_s=20)
    start(name="sighted")
    assert over(batch_id)["counts"]["done"] == 3


def test_what_is_asked_wrongly_is_told_in_one_sentence(database, broker, file):
    for words in (
        ("submit", "/nowhere.jsonl"),
        ("submit", file("{}"), "--within", "soon"),
        ("submit", file("{}"), "--tier", "interactive"),
        ("submit", file("{}"), "--window", "at night"),
        ("submit", file("{}"), "--window", "22:00-06:00", "--zone", "Mars/Olympus"),
        ("submit", file("{}"), "--zone", "Europe/Berlin"),
    ):
        done = CliRunner().invoke(cli, ["batch", *words])
        assert done.exit_code == 2, done.output
        assert "Traceback" not in done.output
    done = CliRunner().invoke(cli, ["batch", "status", "batch_none"])
    assert (done.exit_code, done.stderr) == (1, "gaelp: no batch begins with 'batch_none'.\n")


def test_way_is_made_for_a_line_that_must_run_alone(start, file):
    batch_id = gaelp("submit", file(*questions(40))).strip()
    line = task_id(batch_id, "q9")
    app.redis.set(app.keys.claims(line), 2)
    app.redis.set(app.keys.deaths(line), 2)
    worker = start(GAELP_BATCH_WINDOW="16")
    assert over(batch_id, within_s=90)["counts"]["done"] == 40
    assert "making way, a message needs a worker that runs nothing else" in worker.log()


def test_old_batches_are_thrown_away_as_the_setting_says(database, broker, file, monkeypatch):
    batch_id = gaelp("submit", file("{bad"), code=1).strip()
    kept = app.settings
    for keep_s, gone in ((0.0, 0), (3600.0, 0), (1e-6, 1)):
        monkeypatch.setattr(app, "settings", kept.model_copy(update={"batch_keep_s": keep_s}))
        assert prune_batches() == gone
    gaelp("status", batch_id, code=1)


@pytest.mark.parametrize("words", [("list",), ("status", "x"), ("results", "x")])
def test_a_name_that_no_tenant_can_have_is_refused(database, words):
    for name, why in (("t" * 201, "200 characters"), ("\udcff", "not UTF-8")):
        done = CliRunner().invoke(cli, ["batch", *words, "--tenant", name])
        assert done.exit_code == 2
        assert why in " ".join(done.stderr.split())
    assert CliRunner().invoke(cli, ["batch", "status", "\udcff"]).exit_code == 2
