"""Databases of this process: made once each, for making one costs more than most of what is asked of it."""

from functools import cache
from typing import TYPE_CHECKING

from gaelp_tasks.errors import SettingsError

if TYPE_CHECKING:
    from gaelp_tasks.db.database import Database

__all__ = ["database_at"]


@cache
def database_at(url: str, purpose: str) -> "Database":  # noqa: ARG001  it is known by both
    """The one of this address for a purpose: who ends its connections ends none of another purpose.

    Raises SettingsError where the address is bad, or SQLAlchemy or a driver is not installed.
    """
    try:
        from gaelp_tasks.db.database import Database  # noqa: PLC0415  SQLAlchemy is no small thing
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed: pip install 'gaelp-tasks[worker]'.") from error
    return Database(url)
