"""A purge by id leaves nothing of what is over, and leaves alone what is not."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from gaelp_tasks import app, attachments, endings
from gaelp_tasks.cli.app import cli
from gaelp_tasks.connections import Trouble
from gaelp_tasks.db.base import Base
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.history import History
from gaelp_tasks.models.batch import BatchState, LineOutcome, task_id
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Ended, Reach
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.services.batches import take_in
from gaelp_tasks.tasks.batch_lines import LineTasks
from gaelp_tasks.tasks.maintenance import record_history
from support.claims import claim, holder, message, publish
from support.told import NOON, end, gaelp, row, rows_in, tell


def test_the_command_throws_away_by_id_and_by_age(file, loop, redis):
    now = datetime.now(UTC)
    rows = [row(name) | {"finished_at": now - timedelta(days=days)} for days, name in enumerate("abc")]
    loop.run(History(file, None).add(rows))
    tell(redis, end("a"), end("d"))
    done = gaelp("purge", "a", "x")
    assert done.stdout == "1 thrown away\n"
    assert "does not have x" in done.stderr
    assert record_history() == 1, "what is on its way of a comes no more"
    assert rows_in(loop, file).keys() == {"b", "c", "d"}
    tell(redis, end("e", tenant="me"))
    assert gaelp("purge", "e", "--tenant", "you").stdout == "0 thrown away\n"
    assert redis.xlen(app.keys.history) == 1
    assert gaelp("purge", "e", "--tenant", "me").stdout == "1 thrown away\n"
    assert redis.xlen(app.keys.history) == 0
    assert gaelp("purge", "--older-than", "36h").stdout == "1 thrown away\n"
    assert rows_in(loop, file).keys() == {"b", "d"}


SECRETS = ("PLUTONIUM", "CAESIUM")  # of prompts and of answers
READ = {
    "string": lambda redis, key: redis.get(key),
    "list": lambda redis, key: redis.lrange(key, 0, -1),
    "hash": lambda redis, key: redis.hgetall(key),
    "set": lambda redis, key: redis.smembers(key),
    "zset": lambda redis, key: redis.zrange(key, 0, -1),
    "stream": lambda redis, key: redis.xrange(key),
}


def places(redis, loop, db):
    """Where a secret is: keys of Redis and tables of SQL."""

    async def tables():
        found = set()
        async with db.reading() as session:
            for name, table in Base.metadata.tables.items():
                rows = (await session.execute(select(table))).all()
                found |= {name} if any(secret in str(rows) for secret in SECRETS) else set()
        return found

    texts = {key: str(READ[redis.type(key)](redis, key)) for key in redis.scan_iter()}
    return {key for key, told in texts.items() if any(one in told for one in SECRETS)} | loop.run(tables())


def store(redis, name, text):
    """Its result, as Celery's record."""
    told = {"status": "SUCCESS", "result": {"text": text}, "traceback": None, "children": [], "task_id": name}
    redis.set(app.backend.get_key_for_task(name), json.dumps(told))


def leave_everywhere(redis, loop, db, name):
    """All that may be kept of an invocation that is over; the places."""
    prompt, answer = SECRETS
    loop.run(History(db, None).add([row(name, prompt=prompt, text=answer)]))
    tell(redis, end(name, prompt=prompt, text=answer))
    store(redis, name, answer)
    stream = app.keys.stream(name)
    for number, fields in enumerate(({"start": "{}"}, {"t": answer}, {"end": '{"outcome": "done"}'})):
        redis.xadd(stream, fields, id=f"1-{number}")
    lain = attachments.put(redis, app.keys, name, prompt.encode())
    publish(message(name, argsrepr=prompt, compression="gzip"))
    claim(holder("a"))
    record = app.backend.get_key_for_task(name).decode()
    beside = app.keys.attachment(name, lain.place)
    return {"invocations", app.keys.history, record, stream, beside, app.keys.dead_messages}


def test_a_purge_by_id_leaves_no_text_anywhere(file, loop, redis):
    redis.set(app.keys.asked("abc"), "digest published")
    there = leave_everywhere(redis, loop, file, "abc")
    assert places(redis, loop, file) == there
    leave_everywhere(redis, loop, file, "abcd")
    done = gaelp("purge", "abc")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "1 thrown away\n", "")
    assert app.AsyncResult("abc").status == "PENDING"
    assert not redis.exists(app.keys.asked("abc")), "its key may be asked for again"
    assert gaelp("purge", "abcd").exit_code == 0
    assert places(redis, loop, file) == set()


def test_a_tenant_purges_from_redis_only_what_the_history_knows_as_its_own(file, loop, redis):
    store(redis, "a", SECRETS[1])
    loop.run(History(file, None).add([row("a", tenant="me")]))
    assert gaelp("purge", "a", "--tenant", "you").stdout == "0 thrown away\n"
    assert app.AsyncResult("a").status == "SUCCESS"
    assert gaelp("purge", "a", "--tenant", "me").stdout == "1 thrown away\n"
    assert places(redis, loop, file) == set()


def running(redis):
    publish(message("abc"))
    claim(holder("a"))
    redis.xadd(app.keys.stream("abc"), {"start": "{}"}, id="1-0")


def told_and_not_acknowledged(redis):
    running(redis)
    store(redis, "abc", SECRETS[1])


def waiting_for_its_time(redis):
    redis.zadd(app.keys.parked, {"abc": 1e15})


def published_beside_its_prompt(redis):
    attachments.put(redis, app.keys, "abc", b"x")


@pytest.mark.parametrize(
    "begin", [running, told_and_not_acknowledged, waiting_for_its_time, published_beside_its_prompt]
)
def test_what_is_not_over_is_left_alone_and_told(file, redis, begin):
    begin(redis)
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    done = gaelp("purge", "abc")
    assert (done.exit_code, done.stdout) == (1, "0 thrown away\n")
    assert "abc is not over: gaelp cancel it first" in done.stderr
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before


def test_the_mark_by_which_a_late_message_is_dropped_stays(file, redis):
    LineTasks(app, tenant="").void(["abc"], all_of_them=True, for_s=60)
    assert "does not have abc" in gaelp("purge", "abc").stderr
    assert app.AsyncResult("abc").status == "SUCCESS"


def test_a_line_of_a_batch_is_told_with_the_verb_that_removes_it(file, loop, redis):
    batches = Batches(file)
    batch = loop.run(batches.create(tier=Tier.BATCH, name="", now=NOON))
    lines = io.BytesIO(f'{{"custom_id": "x", "prompt": "{SECRETS[0]}"}}'.encode())
    loop.run(take_in(batches, batch, lines, Defaults(), app.settings))
    line = task_id(batch.id, "x")
    store(redis, line, SECRETS[1])
    done = gaelp("purge", line)
    assert (done.exit_code, f"gaelp batch cancel {batch.id}" in done.stderr) == (1, True)
    assert app.AsyncResult(line).status == "SUCCESS", "who conducts it has not noted it yet"
    loop.run(batches.take_over(batch.id, "me", ticket=0, now=NOON, died=False))
    ended = [Ended(1, LineOutcome.DONE, result=json.dumps({"text": SECRETS[1]}))]
    loop.run(batches.progress(batch.id, "me", ended, Reach(1), now=NOON))
    done = gaelp("purge", line)
    assert f"line 1 of a batch, which keeps its prompt and answer: gaelp batch remove {batch.id}" in (
        done.stderr
    )
    assert places(redis, loop, file) == {"batch_lines"}
    for state in (BatchState.FINALIZING, BatchState.COMPLETED):
        loop.run(batches.move(batch.id, state, now=NOON))
    assert CliRunner().invoke(cli, ["batch", "remove", batch.id, "--yes"]).exit_code == 0
    assert places(redis, loop, file) == set()


def test_a_redis_that_is_away_is_no_purge(file, monkeypatch):
    def away(*_):
        raise Trouble("away")

    monkeypatch.setattr(endings, "withdraw", away)
    done = gaelp("purge", "abc")
    assert (done.exit_code, "Say it again when it is back" in done.stderr) == (1, True)
