"""Addresses of the database as GAELP_DATABASE_URL takes them. Pure, and without SQLAlchemy.

sqlite:////var/lib/gaelp/gaelp.db      a file; with three slashes below the working directory
sqlite://                              in memory, gone with the process
postgresql://user:password@host:5432/gaelp?sslmode=verify-full

What stands behind the ? of PostgreSQL is libpq's.
"""

import os
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from gaelp_tasks.errors import SettingsError

__all__ = ["check", "default", "is_here", "is_postgres", "sqlite_file", "state_folder"]

SQLITE = "sqlite"
POSTGRES = ("postgresql", "postgres")  # the second is how hosting services write it


def check(url: str) -> None:
    """Raises ValueError, in a sentence without the password, where the address cannot be used."""
    parts = urlsplit(url)
    if parts.scheme == SQLITE:
        if parts.netloc or parts.query or parts.fragment:
            raise ValueError("a file is written sqlite:////its/path, and nothing may follow the path")
    elif parts.scheme in POSTGRES:
        _check_server(url)
    else:
        raise ValueError("the address must start with sqlite:/// or postgresql://")


def _check_server(url: str) -> None:
    parts = urlsplit(url)
    places = [urlsplit(f"//{place}") for place in parts.netloc.rpartition("@")[2].split(",")]
    try:
        whole = all(place.hostname and place.port != 0 for place in places)
    except ValueError:  # a port that is none
        whole = False
    if not whole or not parts.path.strip("/"):
        raise ValueError("a server is written postgresql://user:password@host:5432/database")


def is_postgres(url: str) -> bool:
    """Whether the address is one of PostgreSQL."""
    return urlsplit(url).scheme in POSTGRES


def sqlite_file(url: str) -> Path | None:
    """The file of an sqlite:// address; None where it is kept in memory."""
    path = unquote(urlsplit(url).path)
    return Path(path[1:]) if path.strip("/") else None


def is_here(url: str) -> bool:
    """Whether a worker on this machine shall use it: a file that nobody has made yet is another machine's."""
    file = sqlite_file(url)
    return is_postgres(url) or (file is not None and file.exists())


def state_folder() -> Path:
    """For what is a user's own: $XDG_STATE_HOME/gaelp. Raises SettingsError where there is no home."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111  Path.home() raises where there is none
    if not os.path.isabs(state):  # noqa: PTH117  the two belong together
        raise SettingsError("GAELP_DATABASE_URL: this user has no home folder, so the file must be named.")
    return Path(state) / "gaelp"


def default() -> str:
    """A file of this user's: $XDG_STATE_HOME/gaelp/gaelp.db. Raises SettingsError where there is no home."""
    return f"sqlite:///{quote(str(state_folder()))}/gaelp.db"
