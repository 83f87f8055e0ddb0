"""The history: one row for each invocation, whatever dies on the way from Redis into the database."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner

from gaelp_tasks import app, attachments, endings
from gaelp_tasks.cli.app import cli
from gaelp_tasks.connections import Trouble
from gaelp_tasks.db.base import Base
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.history import ANY, History, Which
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.models.batch import BatchState, LineOutcome, task_id
from gaelp_tasks.models.batch_file import Defaults
from gaelp_tasks.models.batch_work import Ended, Reach
from gaelp_tasks.models.ending import Ending
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.runtime import Runtime
from gaelp_tasks.services import history as service
from gaelp_tasks.services.batches import take_in
from gaelp_tasks.tasks.batch_lines import LineTasks
from gaelp_tasks.tasks.maintenance import prune_history, record_history
from support.claims import claim, holder, message, publish

NOON = datetime(2026, 1, 22, 12, tzinfo=UTC)


def end(name, **changed):
    facts = {
        "id": name,
        "task": "gaelp.invoke_agent",
        "state": "done",
        "stop_reason": "stop",
        "tier": "batch",
    }
    return Ending(**(facts | {"priority": 5, "agent": "chat", "model": "m:1b", "claims": 1} | changed))


def row(name, *, ended_s=0.0, **changed):
    return end(name, **changed).columns() | {"finished_at": NOON + timedelta(seconds=ended_s)}


async def ids(history, which=ANY, *, most=100, skip=0):
    return [one.id for one in await history.listed(which, most=most, skip=skip)]


async def test_rows_come_newest_first_and_in_pages(db):
    history = History(db, None)
    await history.add(row(f"{number}", ended_s=number) for number in range(7))
    assert await ids(history) == ["6", "5", "4", "3", "2", "1", "0"]
    assert await ids(history, most=2, skip=3) == ["3", "2"]
    assert await history.count() == 7


async def test_all_that_was_told_comes_back(db):
    told = row(
        "a", error="NodeFailed: no", tenant="t", node="http://n:1", worker="w", attempts=2, queued_s=0.5,
        load_s=1.5, first_token_s=2.5, total_s=3.5, prompt_tokens=4, completion_tokens=5,
        prompt="why?", text="ü\U0001f600",
    )  # fmt: skip
    await History(db, None).add([told])
    (found,) = await History(db, "t").find("a")
    assert {name: getattr(found, name) for name in told} == told
    assert found.facts().keys() == told.keys() - {"prompt", "text"}


async def test_nothing_to_keep_is_kept(db):
    await History(db, None).add([])
    assert await History(db, None).count() == 0


async def test_the_same_again_changes_nothing_and_the_newest_end_counts(db):
    history = History(db, None)
    await history.add([row("a", ended_s=5, state="failed", claims=2), row("a", claims=1, state="cut")])
    await history.add([row("a", ended_s=5, state="failed", claims=2)])
    await history.add([row("a", ended_s=4, state="cut")])
    assert [(one.state, one.claims) for one in await history.listed(most=9)] == [("failed", 2)]
    await history.add([row("a", ended_s=6, state="done", claims=3)])
    assert [(one.state, one.claims) for one in await history.listed(most=9)] == [("done", 3)]


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (Which(tier="interactive"), ["b"]),
        (Which(model="m:7b"), ["c"]),
        (Which(agent="coding"), ["d"]),
        (Which(state="failed"), ["e"]),
        (Which(since=NOON + timedelta(seconds=3)), ["e", "d"]),
        (Which(since=NOON + timedelta(seconds=3), state="failed"), ["e"]),
        (Which(tier="background"), []),
    ],
)
async def test_rows_are_found_by_what_they_are(db, which, found):
    history = History(db, None)
    changes = [{}, {"tier": "interactive"}, {"model": "m:7b"}, {"agent": "coding"}, {"state": "failed"}]
    await history.add(row("abcde"[number], ended_s=number, **one) for number, one in enumerate(changes))
    assert await ids(history, which) == found
    assert await history.count(which) == len(found)


async def test_a_tenant_sees_and_throws_away_only_its_own(db):
    everyone, mine, nobodys = History(db, None), History(db, "me"), History(db, "")
    await everyone.add([row("a", tenant="me"), row("b", tenant="you"), row("c")])
    assert sorted(await ids(everyone)) == ["a", "b", "c"]
    assert (await ids(mine), await ids(nobodys)) == (["a"], ["c"])
    assert await mine.find("b") == []
    assert await mine.count() == 1
    assert await mine.purge(["a", "b", "c"]) == 1
    assert await nobodys.prune(NOON + timedelta(days=1)) == 1
    assert await ids(everyone) == ["b"]


async def test_an_id_is_found_by_how_it_begins_unless_several_do(db):
    history = History(db, None)
    await history.add([row("ab%c"), row("ab"), row("abx"), row("ab_c")])
    assert [one.id for one in await history.find("ab")] == ["ab"]
    assert [one.id for one in await history.find("ab%")] == ["ab%c"]
    assert [one.id for one in await history.find("ab_")] == ["ab_c"]
    assert len(await history.find("a")) == 2
    assert await history.find("b") == []


async def test_what_is_old_is_thrown_away_in_steps(db, monkeypatch):
    monkeypatch.setattr("gaelp_tasks.db.history.AT_ONCE", 3)
    history = History(db, None)
    await history.add(row(f"{number}", ended_s=number) for number in range(10))
    assert await history.prune(NOON + timedelta(seconds=8)) == 8
    assert await ids(history) == ["9", "8"]
    assert await history.purge(["9", "9", "8", "7"]) == 2


async def test_a_row_that_the_database_refuses_keeps_no_other_out(db, caplog):
    history = History(db, None)
    await history.add([row("a"), row("b") | {"priority": "high" * 100}, row("c")])
    if "sqlite" in db.place:  # which takes any text for a number
        return
    assert sorted(await ids(history)) == ["a", "c"]
    assert "does not take the end of b" in caplog.text


# --- from Redis into the database ---


@pytest.fixture
def loop():
    made = Runtime()
    yield made
    made.close()


@pytest.fixture
def opened(loop):
    """Open a database: `opened(url)`, with the newest tables; all are closed in the end."""
    several = []

    def open_(url):
        db = Database(url)
        several.append(db)
        loop.run(db.migrate())
        return db

    yield open_
    for db in several:
        loop.run(db.close())


@pytest.fixture
def here(redis, sql_url, opened, monkeypatch):
    """The database that this process is set to use."""
    set_to(monkeypatch, database_url=sql_url)
    return opened(sql_url)


def set_to(monkeypatch, **settings):
    monkeypatch.setitem(app.__dict__, "settings", app.settings.model_copy(update=settings))


def tell(redis, *ends):
    for one in ends:
        endings.tell(redis, app.keys, one)


def rows_in(loop, db):
    return {one.id: one.state for one in loop.run(History(db, None).listed(most=10_000))}


def test_what_workers_told_is_moved_into_the_database(redis, here, loop):
    assert record_history() == 0
    tell(redis, end("a"), end("b", state="failed"))
    assert record_history() == 2
    assert rows_in(loop, here) == {"a": "done", "b": "failed"}
    assert redis.xlen(app.keys.history) == 0
    (newest, _) = loop.run(History(here, None).listed(most=2))
    assert abs(newest.finished_at - datetime.now(UTC)) < timedelta(seconds=60)
    assert record_history() == 0


def test_more_than_one_transaction_holds_is_moved_in_several(redis, here, loop, monkeypatch):
    monkeypatch.setattr(service, "AT_ONCE", 7)
    tell(redis, *(end(f"{number}") for number in range(30)))
    assert record_history() == 30
    assert len(rows_in(loop, here)) == 30


def test_two_recorders_at_once_make_one_row_of_each(redis, here, sql_url, loop, monkeypatch):
    monkeypatch.setattr(service, "AT_ONCE", 5)
    tell(redis, *(end(f"{number}") for number in range(100)))

    def record():
        beside = Runtime()
        db = Database(sql_url)
        try:
            return service.record(app, db, beside)
        finally:
            beside.run(db.close())
            beside.close()

    with ThreadPoolExecutor(2) as several:
        moved = [one.result(60) for one in [several.submit(record) for _ in range(2)]]
    assert sum(moved) >= 100
    assert len(rows_in(loop, here)) == 100
    assert redis.xlen(app.keys.history) == 0


def test_a_recorder_that_dies_before_redis_forgets_leaves_one_row_each(redis, here, loop, monkeypatch):
    tell(redis, end("a"), end("b"))

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(service, "forget", die)
        with pytest.raises(KeyboardInterrupt):
            record_history()
    assert redis.xlen(app.keys.history) == 2
    assert record_history() == 2
    assert rows_in(loop, here) == {"a": "done", "b": "done"}


def test_a_recorder_that_dies_before_it_commits_loses_nothing(redis, here, loop, monkeypatch):
    tell(redis, end("a"), end("b"))

    async def die(*_):
        raise DatabaseUnavailable("gone")

    with monkeypatch.context() as dying:
        dying.setattr(History, "add", die)
        assert record_history() == 0
    assert rows_in(loop, here) == {}
    assert record_history() == 2


def test_what_cannot_be_read_is_thrown_away_and_holds_up_nothing(redis, here, loop, caplog):
    redis.xadd(app.keys.history, {"end": "no JSON"})
    redis.xadd(app.keys.history, {"other": "field"})
    tell(redis, end("a"))
    assert record_history() == 3
    assert rows_in(loop, here) == {"a": "done"}
    assert "2 entries of the history cannot be read" in caplog.text


def test_a_later_release_may_tell_more(redis, here, loop):
    told = end("a").model_dump(mode="json") | {"colour": "red"}
    redis.xadd(app.keys.history, {"end": json.dumps(told)})
    assert record_history() == 1
    assert rows_in(loop, here) == {"a": "done"}


def test_a_worker_without_the_file_leaves_it_to_one_that_has_it(redis, tmp_path, monkeypatch):
    set_to(monkeypatch, database_url=f"sqlite:///{tmp_path}/gaelp.db")
    tell(redis, end("a"))
    assert record_history() == 0
    assert redis.xlen(app.keys.history) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_does_not_serve_us_is_told_once_and_tried_again(
    redis, loop, opened, tmp_path, monkeypatch, caplog
):
    set_to(monkeypatch, database_url="postgresql://me:SECRET@127.0.0.1:1/gaelp")
    tell(redis, end("a"))
    assert [record_history() for _ in range(3)] == [0, 0, 0]
    assert caplog.text.count("does not serve us") == 1
    assert "SECRET" not in caplog.text
    url = f"sqlite:///{tmp_path}/gaelp.db"
    db = opened(url)
    set_to(monkeypatch, database_url=url)
    assert record_history() == 1
    assert rows_in(loop, db) == {"a": "done"}


def test_the_history_of_a_cluster_is_not_scattered_over_two_databases(
    redis, loop, opened, tmp_path, monkeypatch
):
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "two")]
    one, two = map(opened, urls)
    for number, url, moved in ((1, urls[0], 1), (2, urls[1], 0), (3, urls[0], 2)):
        set_to(monkeypatch, database_url=url)
        tell(redis, end(f"{number}"))
        assert record_history() == moved
    assert rows_in(loop, one) == {"1": "done", "2": "done", "3": "done"}
    assert rows_in(loop, two) == {}
    assert 3500 < redis.ttl(app.keys.history_home) <= 3600


def test_only_so_many_ends_wait_in_redis(redis, monkeypatch):
    monkeypatch.setattr(endings, "BOUND_BYTES", 300 * endings.ENTRY_BYTES)
    tell(redis, *(end(f"{number}") for number in range(1000)))
    assert 300 <= redis.xlen(app.keys.history) < 500


def test_what_is_older_than_the_setting_is_pruned(here, loop, monkeypatch):
    now = datetime.now(UTC)
    old = [row("a") | {"finished_at": now - timedelta(days=2)}, row("b") | {"finished_at": now}]
    loop.run(History(here, None).add(old))
    set_to(monkeypatch, history_keep_s=0.0)
    assert prune_history() == 0
    set_to(monkeypatch, history_keep_s=86_400.0)
    assert prune_history() == 1
    assert rows_in(loop, here) == {"b": "done"}


# --- gaelp history ---


@pytest.fixture
def file(redis, opened, tmp_path, monkeypatch):
    """A database in a file, which the command finds in its environment."""
    url = f"sqlite:///{tmp_path}/gaelp.db"
    set_to(monkeypatch, database_url=url)
    return opened(url)


def gaelp(*words):
    done = CliRunner().invoke(cli, ["history", *words])
    assert not isinstance(done.exception, SQLAlchemyError | AttributeError | TypeError), done.exception
    return done


def listed(*words):
    done = gaelp(*words, "--json")
    assert done.exit_code == 0, done.output
    return [one["id"] for one in json.loads(done.stdout)]


def test_the_command_lists_what_is_meant(file, loop):
    now = datetime.now(UTC)
    changes = {"a": {}, "b": {"tier": "interactive"}, "c": {"state": "failed", "error": "NodeFailed: no"}}
    rows = [row(name, **one) for name, one in changes.items()]
    for hours, one in enumerate(rows):
        one["finished_at"] = now - timedelta(hours=hours)
    loop.run(History(file, None).add([*rows, row("t", tenant="me")]))
    assert listed() == ["a", "b", "c", "t"]
    assert listed("--since", "90m") == ["a", "b"]
    assert listed("--since", (now - timedelta(minutes=1)).isoformat()) == ["a"]
    assert listed("--tier", "interactive") == ["b"]
    assert listed("--state", "failed") == ["c"]
    assert listed("--tenant", "me") == ["t"]
    assert listed("--tenant", "") == ["a", "b", "c"]
    assert listed("--most", "1", "--skip", "1") == ["b"]
    table = gaelp("--most", "3").stdout
    assert "NodeFailed" in table
    assert "4 there are" in table
    assert gaelp("--model", "none").stdout == "Nothing in the history is like this.\n"


def test_the_command_shows_one_with_its_texts_only_where_asked(file, loop):
    loop.run(History(file, None).add([row("abc", prompt="SECRET", text="TEXT\x1b[2J"), row("abd")]))
    assert "SECRET" not in gaelp().stdout + gaelp("--json").stdout + gaelp("show", "abc").stdout
    told = gaelp("show", "abc", "--text").stdout
    assert "SECRET" in told
    assert "\x1b" not in told
    assert json.loads(gaelp("show", "abc", "--text", "--json").stdout)["prompt"] == "SECRET"
    for name, why in (("ab", "has several"), ("x", "does not have x")):
        refused = gaelp("show", name)
        assert (refused.exit_code, why in refused.stderr) == (1, True)


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


@pytest.mark.parametrize(
    "words",
    [
        ("--since", "yesterday"), ("--state", "running"), ("--tier", "none"), ("--most", "0"),
        ("purge",), ("purge", "a", "--older-than", "1d"), ("purge", "--older-than", "soon"),
        ("--since", "0001-01-01"), ("purge", "--older-than", "9999-12-31T23:59-14:00"),
        ("--tenant", "\udcff"), ("--model", "\udcff"), ("show", "\udcff"),
    ],
)  # fmt: skip
def test_what_the_command_does_not_understand_is_a_usage_error(file, words):
    assert gaelp(*words).exit_code == 2


def test_without_a_database_there_is_no_history_and_none_is_made(redis, tmp_path, monkeypatch):
    set_to(monkeypatch, database_url=f"sqlite:///{tmp_path}/no/gaelp.db")
    assert "no history yet" in gaelp().stdout
    assert listed() == []
    assert gaelp("purge", "a").stdout == "0 thrown away\n"
    assert gaelp("show", "a").exit_code == 1
    assert list(tmp_path.iterdir()) == []
