"""What holds of either database: transactions, types, and errors that people can read."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import String, bindparam, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gaelp_tasks.db.base import JsonText, UtcTime
from gaelp_tasks.db.database import Database
from gaelp_tasks.errors import DatabaseUnavailable


class Own(DeclarativeBase):
    pass


class Thing(Own):
    """A table of this test's own."""

    __tablename__ = "things"
    id: Mapped[str] = mapped_column(String(50), primary_key=True)
    number: Mapped[int] = mapped_column(default=0)
    at: Mapped[datetime | None] = mapped_column(UtcTime)
    told: Mapped[object | None] = mapped_column(JsonText)


@pytest.fixture
async def things(sql_url):
    """A database that has only the table of this test."""
    db = Database(sql_url)
    async with db.writing() as session:
        connection = await session.connection()
        await connection.run_sync(Own.metadata.create_all)
    yield db
    await db.close()


async def add(db, *new):
    async with db.writing() as session:
        session.add_all(new)


async def ask(db, question):
    async with db.reading() as session:
        return await session.scalar(text(question))


async def numbers(db):
    async with db.reading() as session:
        return {thing.id: thing.number for thing in await session.scalars(select(Thing))}


async def test_what_is_written_is_there_afterwards(things):
    await add(things, Thing(id="a", number=1))
    assert await numbers(things) == {"a": 1}


async def test_one_statement_is_asked_the_quick_way(things):
    await add(things, Thing(id="a", number=1), Thing(id="b", number=2))
    asked = select(Thing.number).where(Thing.number >= bindparam("least")).order_by(Thing.number)
    assert await things.ask(asked, {"least": 1}) == [(1,), (2,)]
    assert [row.number for row in await things.ask(asked, {"least": 2})] == [2]
    assert await asyncio.gather(*(things.ask(text("SELECT 1")) for _ in range(50))) == [[(1,)]] * 50


async def test_an_exception_takes_back_all_of_a_transaction(things):
    async def write():
        async with things.writing() as session:
            session.add(Thing(id="a"))
            await session.flush()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        await write()
    assert await numbers(things) == {}


async def test_a_cancelled_writer_takes_back_all_of_its_transaction(things):
    begun = asyncio.Event()

    async def write():
        async with things.writing() as session:
            session.add(Thing(id="a"))
            await session.flush()
            begun.set()
            await asyncio.Event().wait()

    writer = asyncio.create_task(write())
    await begun.wait()
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await add(things, Thing(id="b"))  # nobody holds a lock any more
    assert await numbers(things) == {"b": 0}


async def test_what_is_changed_while_reading_is_not_kept(things):
    async with things.reading() as session:
        session.add(Thing(id="a"))
        await session.flush()
    assert await numbers(things) == {}


async def test_a_reader_sees_what_was_there_and_waits_for_no_writer(things):
    async with things.writing() as session:
        session.add(Thing(id="a"))
        await session.flush()
        assert await numbers(things) == {}
    assert await numbers(things) == {"a": 0}


async def test_writers_that_start_from_what_they_read_lose_nothing(things):
    await add(things, Thing(id="a"))

    async def add_one():
        async with things.writing() as session:
            thing = await session.scalar(select(Thing).with_for_update())
            await asyncio.sleep(0)
            thing.number += 1

    await asyncio.gather(*(add_one() for _ in range(10)))
    assert await numbers(things) == {"a": 10}


async def test_what_a_constraint_forbids_can_be_told_from_a_lost_database(things):
    await add(things, Thing(id="a"))
    with pytest.raises(IntegrityError):
        await add(things, Thing(id="a"))


TIMES = st.datetimes(timezones=st.timezones()) | st.datetimes(
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
)


@given(TIMES)
def test_a_time_is_the_same_moment_in_either_database(moment):
    try:
        moment.astimezone(UTC)
    except OverflowError:  # the first and last days of the calendar
        return
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        stored = UtcTime().process_bind_param(moment, dialect)
        assert stored.tzinfo is UTC
        kept = stored.replace(tzinfo=None) if dialect.name == "sqlite" else stored
        back = UtcTime().process_result_value(kept, dialect)
        assert back == moment.astimezone(UTC)
        assert back.tzinfo is UTC


async def test_times_come_back_in_utc_and_compare_as_moments(things):
    late = datetime(2026, 3, 29, 3, 30, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    await add(things, Thing(id="a", at=late), Thing(id="b", at=None))
    async with things.reading() as session:
        found = await session.scalar(select(Thing.at).where(Thing.at >= late.astimezone(UTC)))
        assert found == late
        assert found.tzinfo is UTC
        after = timedelta(microseconds=1)
        assert await session.scalar(select(Thing.at).where(Thing.at >= late + after)) is None


async def test_a_time_without_a_zone_is_refused(things):
    with pytest.raises(StatementError, match="no time zone"):
        await add(things, Thing(id="a", at=datetime(2026, 1, 1)))  # noqa: DTZ001  what is refused here


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "ü\U0001f600"]}, [], "text", 0, False])
async def test_json_comes_back_as_it_was(things, value):
    await add(things, Thing(id="a", told=value))
    async with things.reading() as session:
        assert await session.scalar(select(Thing.told)) == value


async def test_no_json_is_null(things):
    await add(things, Thing(id="a", told=None))
    assert await ask(things, "SELECT count(*) FROM things WHERE told IS NULL") == 1


async def test_a_file_is_kept_from_other_users_and_its_folder_is_made(tmp_path):
    file = tmp_path / "a b" / "state" / "gaelp.db"
    db = Database(f"sqlite:///{tmp_path}/a%20b/state/gaelp.db")
    assert not file.parent.exists()
    await db.migrate()
    assert await ask(db, "PRAGMA journal_mode") == "wal"
    assert await ask(db, "PRAGMA foreign_keys") == 1
    assert await ask(db, "PRAGMA synchronous") == 2
    await db.close()
    assert file.exists()
    assert file.parent.stat().st_mode & 0o077 == 0
    assert file.stat().st_mode & 0o077 == 0


async def test_a_database_in_memory_is_one_for_all_its_sessions():
    db = Database("sqlite://")
    await db.migrate()
    assert await ask(db, "SELECT count(*) FROM invocations") == 0
    await db.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqlite:////proc/nowhere/gaelp.db", "nowhere"),
        ("postgresql://me:SECRET@127.0.0.1:1/gaelp?sslpassword=SECRET", "refused|failed"),
    ],
)
async def test_a_database_that_cannot_be_reached_is_one_clear_sentence(url, why):
    db = Database(url)
    with pytest.raises(DatabaseUnavailable, match=why) as caught:
        await db.migrate()
    sentence = str(caught.value)
    assert sentence.startswith("The database ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "SECRET" not in sentence
    await db.close()


async def test_a_file_that_is_no_database_is_one_clear_sentence(tmp_path):
    (tmp_path / "gaelp.db").write_text("no database at all, but quite long " * 100)
    db = Database(f"sqlite:///{tmp_path}/gaelp.db")
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        await db.migrate()
    await db.close()


async def test_a_wrong_password_is_one_clear_sentence_without_it(postgres):
    db = Database(postgres.new_database().replace(":a%3Ab", ":SECRET"))
    with pytest.raises(DatabaseUnavailable, match="password authentication failed") as caught:
        await db.migrate()
    assert "SECRET" not in str(caught.value)
    await db.close()


async def test_a_writer_waits_for_another_program_that_has_the_file(tmp_path):
    db = Database(f"sqlite:///{tmp_path}/gaelp.db")
    await db.migrate()
    with sqlite3.connect(tmp_path / "gaelp.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")

        async def write():
            async with db.writing() as session:
                await session.execute(text("DELETE FROM invocations"))

        waiting = asyncio.create_task(write())
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        other.execute("COMMIT")
        await asyncio.wait_for(waiting, 20)
    other.close()
    await db.close()


async def test_a_postgresql_that_was_restarted_is_there_again(postgres):
    db = Database(postgres.new_database())
    await db.migrate()
    postgres.stop()
    postgres.start()
    assert await ask(db, "SELECT 1") == 1, "the connection that was kept is made anew, and nobody sees it"
    postgres.stop()
    with pytest.raises(DatabaseUnavailable, match="does not serve us"):
        await ask(db, "SELECT 1")
    with pytest.raises(DatabaseUnavailable, match="does not serve us"):
        await db.ask(text("SELECT 1"))
    postgres.start()
    assert await ask(db, "SELECT count(*) FROM invocations") == 0
    await db.close()


async def test_a_connection_that_breaks_halfway_is_one_clear_sentence(postgres):
    db = Database(postgres.new_database())
    with pytest.raises(DatabaseUnavailable, match="does not serve us"):
        await ask(db, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert await ask(db, "SELECT 1") == 1
    await db.close()


def test_json_is_searchable_where_the_database_can():
    assert isinstance(JsonText().load_dialect_impl(postgresql.dialect()), postgresql.JSONB)
