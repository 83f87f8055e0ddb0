"""What `gaelp doctor` says of the database: each row is told when wrong, and silent when right."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from gaelp_tasks.cli import database as looked_at
from gaelp_tasks.cli.checks import machines_of
from gaelp_tasks.cli.database import database, file_system
from gaelp_tasks.db import migrations
from gaelp_tasks.db.database import Database
from gaelp_tasks.settings import Settings

*EARLIER, NEWEST = migrations.revisions()


def look(url, machines=1):
    return list(database(Settings(database_url=url), machines))


def change(url, revision, say=None):
    """Bring it to a revision, and have it say that it is at another one."""

    async def move():
        db = Database(url)
        if revision:
            await db.move(revision)
        async with db.writing() as session:
            await session.execute(text("SELECT 1"))  # with it the file comes
            if say:
                await session.execute(text("UPDATE alembic_version SET version_num = :say"), {"say": say})
        await db.close()

    asyncio.run(move())


def test_tables_of_every_age_are_told(sql_url):
    change(sql_url, None)
    [none] = look(sql_url)
    assert (none.verdict, "no tables yet" in none.finding) == ("warn", True)
    assert "gaelp schedule list" in none.advice
    if EARLIER:
        change(sql_url, EARLIER[-1])
        [early] = look(sql_url)
        assert (early.verdict, f"({EARLIER[-1]}; the newest is {NEWEST})" in early.finding) == ("warn", True)
        assert "Back it up" in early.advice
    change(sql_url, NEWEST)
    [new] = look(sql_url)
    assert (new.verdict, new.advice) == ("ok", "")
    change(sql_url, None, say="9999")
    [later] = look(sql_url)
    assert (later.verdict, "later release (9999" in later.finding) == ("fail", True)
    assert "Update gaelp-tasks" in later.advice


def test_a_file_that_nobody_needs_yet_is_fine_and_is_not_made(tmp_path):
    [found] = look(f"sqlite:///{tmp_path}/there/gaelp.db", machines=3)
    assert (found.verdict, "not there yet" in found.finding) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_does_not_serve_us_is_told_without_its_password(tmp_path):
    file = tmp_path / "gaelp.db"
    file.write_text("no database at all, but long enough to look like one" * 100)
    [broken] = look(f"sqlite:///{file}")
    assert (broken.verdict, "does not serve us" in broken.finding) == ("fail", True)
    pytest.importorskip("asyncpg")
    [away] = look("postgresql://me:SECRET@127.0.0.1:1/gaelp")
    assert away.verdict == "fail"
    assert "GAELP_DATABASE_URL" in away.advice
    assert "SECRET" not in str(away)


def test_a_missing_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    [found] = look("postgresql://me@127.0.0.1:1/gaelp")
    assert (found.verdict, "gaelp-tasks[postgres]" in found.finding) == ("fail", True)


def test_no_home_and_no_file_are_told(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    [found] = database(Settings(), 1)
    assert (found.verdict, "GAELP_DATABASE_URL" in found.finding) == ("fail", True)
    [memory] = look("sqlite://")
    assert (memory.verdict, "in memory" in memory.finding) == ("warn", True)


def test_a_file_that_may_not_be_looked_at_is_told(monkeypatch, tmp_path):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(looked_at.address, "is_here", refuse)
    [found] = look(f"sqlite:///{tmp_path}/gaelp.db")
    assert (found.verdict, "Permission denied" in found.finding) == ("fail", True)


@pytest.fixture
def mounted(monkeypatch):
    """`mounted(("/", "ext4"), ...)`: what the machine has mounted, in order."""

    def mount(*places):
        told = [SimpleNamespace(mountpoint=str(place), fstype=kind) for place, kind in places]
        monkeypatch.setattr(looked_at.psutil, "disk_partitions", lambda all: told)  # noqa: A006  its name

    return mount


@pytest.mark.parametrize(
    ("kind", "machines", "verdict"),
    [
        ("ext4", 1, None),
        ("ext4", 2, "warn"),
        ("nfs4", 1, "warn"),
        ("nfs4", 2, "fail"),
        ("fuse.sshfs", 2, "fail"),
        ("fuseblk", 1, None),
    ],
)
def test_sqlite_where_others_write_too(tmp_path, mounted, kind, machines, verdict):
    url = f"sqlite:///{tmp_path}/gaelp.db"
    change(url, NEWEST)
    mounted(("/", "ext4"), (tmp_path, kind))
    *shared, tables = look(url, machines)
    assert tables.verdict == "ok"
    assert [row.verdict for row in shared] == ([verdict] if verdict else [])
    assert all("PostgreSQL" in row.advice for row in shared)


def test_the_innermost_and_last_mount_counts(tmp_path, mounted):
    inner = tmp_path / "inner"
    mounted((inner, "nfs"), (inner, "xfs"), (tmp_path, "ext4"), ("/", "overlay"), (f"{inner}-other", "nfs"))
    assert file_system(inner / "gaelp.db") == "xfs"
    assert file_system(tmp_path / "gaelp.db") == "ext4"
    mounted()
    assert file_system(tmp_path) == ""


def test_this_machine_tells_where_its_files_lie(tmp_path):
    assert file_system(tmp_path / "gaelp.db")


def test_machines_are_told_by_the_names_of_their_workers():
    named = [SimpleNamespace(worker=name) for name in ("a@one", "b@one", "a@two")]
    assert machines_of(named) == 2
    assert machines_of([]) == 0
