"""The history: one row for each invocation, whatever dies on the way from Redis into the database."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner

from gaelp_tasks import app, endings
from gaelp_tasks.cli.app import cli
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.history import ANY, History, Which
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.models.ending import Ending
from gaelp_tasks.runtime import Runtime
from gaelp_tasks.services import history as service
from gaelp_tasks.tasks.maintenance import prune_history, record_history

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
