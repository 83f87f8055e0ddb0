"""Databases with the newest tables, which this process or the command is set to use."""

import pytest

from gaelp_tasks.db.database import Database
from gaelp_tasks.runtime import Runtime
from support.told import set_to


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


@pytest.fixture
def file(redis, opened, tmp_path, monkeypatch):
    """A database in a file, which the command finds in its environment."""
    url = f"sqlite:///{tmp_path}/gaelp.db"
    set_to(monkeypatch, database_url=url)
    return opened(url)
