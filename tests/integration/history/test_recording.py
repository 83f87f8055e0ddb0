"""Ends on their way from Redis into the database: one row each, whatever dies there."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from gaelp_tasks import app, endings
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.history import History
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.runtime import Runtime
from gaelp_tasks.services import history as service
from gaelp_tasks.tasks.maintenance import prune_history, record_history
from support.told import end, row, rows_in, set_to, tell


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
