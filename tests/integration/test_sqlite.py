"""SQLite on an event loop: what is long does not hold the loop up, and writers take turns."""

import asyncio
import sqlite3
import sys
import threading
import time
from contextlib import closing

import pytest
from sqlalchemy import text

from gaelp_tasks.db import sqlite
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.sqlite import Connection, Desk
from gaelp_tasks.errors import DatabaseUnavailable

#: so many rows, counted one by one
ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n"
COUNT = f"SELECT count(*) FROM ({ROWS})"  # noqa: S608  our own words
WRITER = """
import asyncio, sys, time
from gaelp_tasks.db.database import Database
from sqlalchemy import text

async def main():
    db, longest, until = Database(sys.argv[1]), 0.0, time.monotonic() + 0.8
    while (begun := time.monotonic()) < until:
        async with db.writing() as session:
            await session.execute(text("UPDATE n SET i = i + 1"))
        longest = max(longest, time.monotonic() - begun)
    await db.close()
    print(longest)

asyncio.run(main())
"""


@pytest.fixture
async def numbers(tmp_path):
    """A table of one number."""
    db = Database(f"sqlite:///{tmp_path}/gaelp.db", answer_s=5)
    async with db.writing() as session:
        await session.execute(text("CREATE TABLE n (i INTEGER)"))
        await session.execute(text("INSERT INTO n VALUES (0)"))
    yield db
    await db.close()


async def read(db, sql="SELECT i FROM n"):
    async with db.reading() as session:
        return await session.scalar(text(sql))


async def write(db, sql="UPDATE n SET i = i + 1"):
    async with db.writing() as session:
        await session.execute(text(sql))


async def longest_turn_s(work):
    """The longest time for which nothing else had its turn while `work` was done."""
    longest_s, seen = 0.0, time.thread_time()
    while not work.done():
        await asyncio.sleep(0)
        now = time.thread_time()  # what other programs take counts for nothing
        longest_s, seen = max(longest_s, now - seen), now
    await work
    return longest_s


@pytest.mark.parametrize(
    ("ask", "sql"),
    [
        (read, COUNT.format(1_000_000)),
        (write, f"UPDATE n SET i = ({COUNT.format(1_000_000)})"),  # noqa: S608  our own words
    ],
    ids=["read", "write"],
)
async def test_what_is_long_does_not_hold_up_the_loop(numbers, ask, sql):
    for _ in range(2):
        assert await longest_turn_s(asyncio.create_task(ask(numbers, sql))) < 0.05
    assert await read(numbers, COUNT.format(100_000)) == 100_000


async def test_what_is_short_needs_no_thread(numbers):
    await asyncio.gather(*(read(numbers) for _ in range(100)))
    for _ in range(3):
        await write(numbers)  # the first of a kind is tried in a thread
    before = time.thread_time(), time.process_time()
    for _ in range(300):
        await read(numbers)
    mine, all_s = time.thread_time() - before[0], time.process_time() - before[1]
    assert all_s - mine < 0.2 * mine


async def test_one_transaction_asks_and_changes_as_often_as_it_likes(numbers):
    for _ in range(3):
        async with numbers.writing() as session:
            for _ in range(3):
                await session.execute(text("UPDATE n SET i = i + 1"))
                await session.execute(text("SELECT i FROM n"))
    assert await read(numbers) == 9


async def test_a_long_question_ends_with_who_has_asked_it(numbers):
    asked = asyncio.create_task(read(numbers, COUNT.format(10**12)))
    await asyncio.sleep(0.05)
    asked.cancel()
    done, _ = await asyncio.wait([asked], timeout=20)
    assert done
    assert asked.cancelled()
    assert await read(numbers) == 0


async def test_writers_of_one_process_write_in_the_order_in_which_they_came(numbers):
    order = []

    async def put(name):
        async with numbers.writing() as session:
            await session.execute(text("UPDATE n SET i = i + 1"))
            order.append(name)

    await asyncio.gather(*(put(name) for name in range(20)))
    assert order == list(range(20))
    assert await read(numbers) == 20


async def test_a_writer_who_goes_while_waiting_keeps_nobody_out(numbers):
    async with numbers.writing() as session:
        await session.execute(text("UPDATE n SET i = 5"))
        waiting = [asyncio.create_task(write(numbers)) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert await read(numbers) == 7


async def test_a_writer_who_goes_while_he_commits_keeps_nobody_out(numbers):
    for turns in range(12):
        writer = asyncio.create_task(write(numbers))
        for _ in range(turns):
            await asyncio.sleep(0)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    before = await read(numbers)
    await asyncio.wait_for(write(numbers), 5)
    assert await read(numbers) == before + 1


async def test_a_file_that_stays_locked_is_one_clear_sentence(tmp_path, numbers):
    impatient = Database(f"sqlite:///{tmp_path}/gaelp.db", answer_s=0.2)
    async with numbers.writing() as session:
        await session.execute(text("UPDATE n SET i = 1"))
        with pytest.raises(DatabaseUnavailable, match="database is locked"):
            await write(impatient)
        waiting = [asyncio.create_task(write(impatient)) for _ in range(2)]
        for refused in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(refused, DatabaseUnavailable)
        assert await read(impatient) == 0
    await write(impatient)
    assert await read(impatient) == 2
    await impatient.close()


async def test_several_programs_write_at_once_and_none_is_kept_out(numbers):
    programs = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, numbers.place), stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    waited = [float((await program.communicate())[0]) for program in programs]
    assert max(waited) < 0.6
    assert await read(numbers) > 20


async def test_a_database_that_was_closed_is_opened_again(numbers):
    await write(numbers)
    await numbers.close()
    assert await read(numbers) == 1


def test_a_connection_is_closed_only_when_no_thread_has_it_in_hand(tmp_path):
    """As where SIGTERM ends the loop while a statement runs: closed at once, it would crash the process."""
    connection = Connection(Desk(tmp_path / "gaelp.db", 5.0))
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    begun = threading.Event()

    def work():
        begun.set()
        connection._tell(endless)

    job = connection._job = connection._desk.threads.submit(work)
    assert begun.wait(20)
    connection.close()
    assert job.exception(timeout=0).sqlite_errorcode == sqlite3.SQLITE_INTERRUPT


async def test_who_meets_a_writer_at_a_new_file_waits_for_his_end(tmp_path, monkeypatch):
    """As where several bring it to WAL at once; SQLite itself does not wait there."""
    with closing(sqlite3.connect(tmp_path / "gaelp.db", check_same_thread=False)) as other:
        other.executescript("CREATE TABLE n (i INTEGER); INSERT INTO n VALUES (7); BEGIN IMMEDIATE")
        monkeypatch.setattr(sqlite.time, "sleep", lambda _: other.execute("ROLLBACK"))
        db = Database(f"sqlite:///{tmp_path}/gaelp.db", answer_s=5)
        assert await read(db) == 7
        assert not other.in_transaction
        await db.close()
