"""The tables come, go and come again, on both databases, whoever asks for them at the same time."""

import asyncio
import gc
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Table, inspect, text

import gaelp_tasks.db
from gaelp_tasks.db import migrations
from gaelp_tasks.db.base import Base
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.identity import identity
from gaelp_tasks.errors import DatabaseUnavailable

for _found in pkgutil.iter_modules(gaelp_tasks.db.__path__, "gaelp_tasks.db."):
    importlib.import_module(_found.name)  # every table is in the metadata now

#: brings one database to its newest tables, in a process of its own
MIGRATE = """
import asyncio, sys
from gaelp_tasks.db.database import Database
async def main():
    db = Database(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    await db.migrate()
    await db.close()
asyncio.run(main())
"""


@pytest.fixture
async def empty(sql_url):
    """A database without tables."""
    made = Database(sql_url)
    yield made
    await made.close()


async def asked(db, question):
    async with db.reading() as session:
        connection = await session.connection()
        return await connection.run_sync(question)


async def tables(db):
    return set(await asked(db, lambda connection: inspect(connection).get_table_names()))


def tables_in_memory():
    gc.collect()
    return sum(isinstance(one, Table) for one in gc.get_objects())


async def test_who_asks_for_the_revision_again_and_again_keeps_nothing(empty):
    await empty.migrate()
    await empty.migrate()
    before = tables_in_memory()
    for _ in range(20):
        await empty.migrate()
    assert tables_in_memory() == before


async def test_up_gives_every_table_and_down_takes_every_one_away(empty):
    await empty.migrate()
    assert await tables(empty) == {*Base.metadata.tables, "alembic_version"}
    await empty.move("base")
    assert await tables(empty) == {"alembic_version"}
    await empty.migrate()
    assert await tables(empty) == {*Base.metadata.tables, "alembic_version"}


async def test_every_revision_can_be_taken_back_alone(empty):
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    steps = [step.revision for step in script.walk_revisions()][::-1]
    assert steps[0] == "0001_history"
    before = {}
    for revision in steps:
        before[revision] = await tables(empty)
        await empty.move(revision)
        assert await asked(empty, migrations.current) == revision
    for revision, earlier in zip(steps[::-1][:-1], steps[-2::-1], strict=True):
        await empty.move(earlier)
        assert await asked(empty, migrations.current) == earlier
        assert await tables(empty) == before[revision]


async def test_the_tables_are_those_that_the_code_knows(db):
    def differences(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, Base.metadata)

    assert await asked(db, differences) == []


async def test_a_table_that_the_code_does_not_know_is_seen(db):
    async with db.writing() as session:
        await session.execute(text("ALTER TABLE invocations ADD COLUMN colour VARCHAR(10)"))
    found = await asked(
        db, lambda connection: compare_metadata(MigrationContext.configure(connection), Base.metadata)
    )
    assert [difference[0] for difference in found] == ["remove_column"]


async def test_several_processes_may_bring_the_tables_at_once(sql_url):
    several = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", MIGRATE, sql_url, stdin=-1, stdout=-1, stderr=-1
        )
        for _ in range(4)
    ]
    for one in several:
        await one.stdout.readline()
    ends = await asyncio.gather(*(one.communicate(b"go\n") for one in several))
    assert [one.returncode for one in several] == [0] * 4, ends
    db = Database(sql_url)
    assert await tables(db) == {*Base.metadata.tables, "alembic_version"}
    await db.close()


async def test_two_databases_of_one_process_may_be_brought_up_at_once(tmp_path):
    several = [Database(f"sqlite:///{tmp_path}/{number}.db") for number in range(3)]
    await asyncio.gather(*(one.migrate() for one in several))
    assert len({await identity(one) for one in several}) == 3
    for one in several:
        await one.close()


async def test_a_step_that_fails_leaves_nothing_behind(empty, monkeypatch):
    moved = migrations.move

    def move_and_fail(*given):
        moved(*given)
        raise RuntimeError("the step after")

    monkeypatch.setattr(migrations, "move", move_and_fail)
    with pytest.raises(RuntimeError, match="the step after"):
        await empty.migrate()
    assert await tables(empty) == set()


async def test_tables_of_a_later_release_are_refused_in_one_sentence(db):
    async with db.writing() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999_later'"))
    with pytest.raises(DatabaseUnavailable, match=r"another release \(9999_later\): update gaelp-tasks\.$"):
        await db.migrate()


async def test_a_database_keeps_its_name(db):
    name = await identity(db)
    await db.migrate()
    assert await identity(db) == name
    assert len(name) == 36
