"""What is kept in SQL, as the verbs ask for it: a database opened for one command, on a loop of its own."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from gaelp_tasks import app
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.frozen import well_formed

if TYPE_CHECKING:
    from gaelp_tasks.db.database import Database

__all__ = ["Asking", "Tenant", "opened", "readable", "tenant_name"]

T = TypeVar("T")
Rows = TypeVar("Rows")


class Asking(Generic[Rows]):
    """Runs questions to what is kept there."""

    def __init__(self, loop: asyncio.Runner, rows: Rows) -> None:
        self._loop = loop
        self._rows = rows

    def __call__(self, ask: Callable[[Rows], Coroutine[Any, Any, T]]) -> T:
        """The answer; raises what asking raises."""
        return self._loop.run(ask(self._rows))


@contextmanager
def opened(rows: Callable[["Database"], Rows]) -> Iterator[Asking[Rows]]:
    """Ask what `rows` makes of the database, with the newest tables.

    Raises DatabaseUnavailable, SettingsError.
    """
    from gaelp_tasks.db.database import Database  # noqa: PLC0415  SQLAlchemy takes a while to import

    with asyncio.Runner() as loop:
        db = Database(app.settings.sql_url)
        try:
            loop.run(db.migrate())
            yield Asking(loop, rows(db))
        finally:
            loop.run(db.close())


def readable(text: T) -> T:
    """As it was given, if a database takes it."""
    if isinstance(text, str) and well_formed(text) != text:
        raise typer.BadParameter("it is not UTF-8")
    return text


def tenant_name(name: T) -> T:
    """As it was given, if a tenant may be called so."""
    if isinstance(name, str) and len(name) > LONGEST_TENANT:
        raise typer.BadParameter(f"no name is longer than {LONGEST_TENANT} characters")
    return readable(name)


Tenant = Annotated[
    str, typer.Option(help="Whose it is; nobody's by name if not given.", callback=tenant_name)
]
