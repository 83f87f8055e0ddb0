"""Addresses of the database: what is taken, what is refused, and where it is when nobody says."""

from pathlib import Path

import pytest

from gaelp_tasks.db import address
from gaelp_tasks.db.database import Database
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.settings import Settings


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////var/lib/gaelp.db", Path("/var/lib/gaelp.db")),
        ("sqlite:///gaelp.db", Path("gaelp.db")),
        ("sqlite:////var/a%20b.db", Path("/var/a b.db")),
        ("sqlite://", None),
        ("sqlite:///", None),
    ],
)
def test_an_address_of_sqlite_names_a_file_or_memory(url, file):
    address.check(url)
    assert address.sqlite_file(url) == file
    assert not address.is_postgres(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/gaelp",
        "postgres://me:pw@host:5433/gaelp",
        "postgresql://me:p%40w@[::1]:5433/gaelp?sslmode=verify-full",
        "postgresql://me@one:1,two:2/gaelp?target_session_attrs=primary",
    ],
)
def test_addresses_of_postgresql_are_libpqs(url):
    address.check(url)
    assert address.is_postgres(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host",
        "postgresql:///gaelp",
        "postgresql://host:x/gaelp",
        "postgresql://host:99999/gaelp",
        "sqlite://gaelp.db",
        "sqlite:///gaelp.db?mode=ro",
        "mysql://host/gaelp",
        "gaelp.db",
        "",
    ],
)
def test_what_is_no_address_is_refused_by_the_database_too(url):
    with pytest.raises(ValueError, match=r"written|start with"):
        address.check(url)
    with pytest.raises(SettingsError, match=r"^GAELP_DATABASE_URL: .*\.$"):
        Database(url)


def test_a_database_is_a_file_of_the_user_unless_somebody_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().sql_url == f"sqlite:///{tmp_path}/gaelp/gaelp.db"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert address.sqlite_file(Settings().sql_url) == Path("/home/me/.local/state/gaelp/gaelp.db")
    assert Settings(database_url="sqlite://").sql_url == "sqlite://"


def test_a_user_without_a_home_is_told_to_name_the_file(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as for a number that no user has
    with pytest.raises(SettingsError, match="must be named"):
        _ = Settings().sql_url


def test_the_state_folder_may_have_any_name(monkeypatch, tmp_path):
    folder = tmp_path / "a%20b ?#"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    assert address.sqlite_file(Settings().sql_url) == folder / "gaelp" / "gaelp.db"


def test_a_driver_that_is_not_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "asyncpg", None)
    with pytest.raises(SettingsError, match=r"pip install 'gaelp-tasks\[postgres\]'\.$"):
        Database("postgresql://me:pw@host/gaelp")
